// Dense matrix products of the CUDA device and the ways to compute them.
#pragma once

#include <span>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/norm.h"

namespace moec::cuda {

/// A matrix of a product, row-major.
struct ProductMatrix {
  const void* data = nullptr;
  fb::DType dtype = fb::DType::F32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // in elements; 0 for cols. 16-bit matrices alone may have another.

  int64_t stride() const { return row_stride == 0 ? cols : row_stride; }
};

enum class ProductForm {
  kForward,  // c[m,n] = a[m,k] b[n,k]^T
  kInput,    // c[m,n] = a[m,k] b[k,n]
  kWeight,   // c[m,n] = a[k,m]^T b[k,n]
};

/// c = a b in the given form, plus `bias` [n], in the type of b, in every row if present, plus the old c if
/// `accumulate`. Sums are f32, or f64 where all matrices are. An epilogue goes without `accumulate`, and its
/// matrices may not overlap c.
struct Product {
  ProductForm form;
  ProductMatrix a;
  ProductMatrix b;
  ProductMatrix c;
  const void* bias = nullptr;
  bool accumulate = false;
  Epilogue epilogue = {};

  int64_t m() const { return c.rows; }
  int64_t n() const { return c.cols; }
  int64_t k() const { return form == ProductForm::kWeight ? a.rows : a.cols; }
};

/// Computes a product the way that its types and size suggest. f32 products are as exact as sums in f32. May
/// use the context's cuBLAS workspace as scratch memory.
cudaError_t multiply(const Product& product, const CudaContext& context);

/// Whether multiply_cublas() computes products of these types. It knows no epilogue.
bool cublas_supports(const Product& product);

/// How many algorithms cuBLASLt knows for a product, up to `most`.
int cublas_algorithms(const Product& product, int most, const CudaContext& context);

/// Any supported product, by cuBLASLt's algorithm number `algorithm`; 0 is the one it holds to be the best.
cudaError_t multiply_cublas(const Product& product, const CudaContext& context, int algorithm = 0);

/// Whether multiply_narrow() computes the product: a is f32 and has few columns, b is bf16; the product is
/// the gradient of a linear layer's input or weight.
bool is_narrow(const Product& product);

/// A product that is_narrow(), as exact as sums in f32.
cudaError_t multiply_narrow(const Product& product, const CudaContext& context);

/// Whether multiply_tiled() computes products of these types.
bool tiled_supports(const Product& product);

/// Any product but those of f16 factors to an f16 result, by our own kernels, its epilogue included: good for
/// small products, for f64, and for factors of different types.
cudaError_t multiply_tiled(const Product& product, const CudaContext& context);

/// A norm, and by multiply_tiled() the product of which its y is the factor a and no other operand, in one
/// launch, with the bits of the two calls.
cudaError_t multiply_normed(const NormOperands& norm, const Product& product, const CudaContext& context);
bool can_multiply_normed(const NormOperands& norm, const Product& product, const CudaContext& context);

/// The gradient of a bias, of the type of its weight's, in which the old one may be `accumulate`d. No data
/// where a layer has no bias.
struct BiasGradient {
  void* data = nullptr;
  bool accumulate = false;
};

/// A weight gradient by multiply_tiled(), and in the same launch the gradient [m] of the bias, the sums of
/// the columns of its factor a.
cudaError_t multiply_parameters(const Product& weight, const BiasGradient& bias, const CudaContext& context);
bool can_multiply_parameters(const Product& weight, const CudaContext& context);

/// The same for layers of the same types, kMostBatchedCalls at most, in one launch that takes its time and
/// little of the device: beside a chain of other kernels, every further block would hold these up. An element
/// has the same bits whatever else is in the launch.
cudaError_t multiply_beside(std::span<const Product> weights, std::span<const BiasGradient> biases,
                            const CudaContext& context);
/// Whether the gradient has enough tiles, and few enough depths, for that.
bool can_multiply_beside(const Product& weight, const CudaContext& context);

}  // namespace moec::cuda
