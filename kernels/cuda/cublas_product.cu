// Matrix products by cuBLASLt. Its matrices are column-major, so it is asked for c^T = b^T a^T.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/product.h"

namespace moec::cuda {
namespace {

cudaError_t to_cuda_error(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return cudaSuccess;
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return cudaErrorNotSupported;
    case CUBLAS_STATUS_INVALID_VALUE:
      return cudaErrorInvalidValue;
    case CUBLAS_STATUS_ALLOC_FAILED:
      return cudaErrorMemoryAllocation;
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return cudaErrorNoKernelImageForDevice;
    default:
      return cudaErrorLaunchFailure;
  }
}

cudaDataType_t to_cuda_type(fb::DType dtype) {
  if (dtype == fb::DType::F16) return CUDA_R_16F;
  return dtype == fb::DType::BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/// Runs steps until one fails, and remembers its status.
class Steps {
 public:
  template <class Call>
  Steps& then(Call&& call) {
    if (status_ == CUBLAS_STATUS_SUCCESS) status_ = call();
    return *this;
  }
  cublasStatus_t status() const { return status_; }

 private:
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
};

/// The largest power of two, at most 256, that the address and all rows of a matrix are multiples of.
uint32_t alignment(const ProductMatrix& matrix) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(matrix.data) |
                        static_cast<uint64_t>(matrix.stride() * dtype_size(matrix.dtype)) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

cublasStatus_t init_layout(cublasLtMatrixLayoutOpaque_t& layout, const ProductMatrix& matrix) {
  return cublasLtMatrixLayoutInit(&layout, to_cuda_type(matrix.dtype), static_cast<uint64_t>(matrix.cols),
                                  static_cast<uint64_t>(matrix.rows), matrix.stride());
}

cublasStatus_t init_desc(cublasLtMatmulDescOpaque_t& desc, const Product& product) {
  const cublasOperation_t first = product.form == ProductForm::kForward ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = product.form == ProductForm::kWeight ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasLtEpilogue_t epilogue = product.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    return [&desc, attribute, &value] {
      return cublasLtMatmulDescSetAttribute(&desc, attribute, &value, sizeof(value));
    };
  };
  return Steps()
      .then([&] { return cublasLtMatmulDescInit(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F); })
      .then(set(CUBLASLT_MATMUL_DESC_TRANSA, first))
      .then(set(CUBLASLT_MATMUL_DESC_TRANSB, second))
      .then(set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue))
      .then(set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias))
      .status();
}

/// Asks for the algorithms that use the context's workspace and add up split sums in a fixed order.
cublasStatus_t init_preference(cublasLtMatmulPreferenceOpaque_t& preference, const Product& product,
                               const CudaContext& context) {
  const uint64_t workspace = context.cublas_workspace_bytes;
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
  const uint32_t align_a = alignment(product.b), align_b = alignment(product.a),
                 align_c = alignment(product.c);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    return [&preference, attribute, &value] {
      return cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value));
    };
  };
  return Steps()
      .then([&] { return cublasLtMatmulPreferenceInit(&preference); })
      .then(set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace))
      .then(set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions))
      .then(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_a))
      .then(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_b))
      .then(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_c))
      .then(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_c))
      .status();
}

constexpr int kMostAlgorithms = 4;

/// A product as cuBLASLt sees it.
struct Problem {
  cublasLtMatmulDescOpaque_t desc;
  cublasLtMatrixLayoutOpaque_t a, b, c;
  cublasLtMatmulHeuristicResult_t algorithms[kMostAlgorithms];  // the best first
  int found = 0;

  /// Asks for up to `most` algorithms.
  cublasStatus_t init(const Product& product, int most, const CudaContext& context) {
    cublasLtMatmulPreferenceOpaque_t preference;
    return Steps()
        .then([&] { return init_desc(desc, product); })
        .then([&] { return init_layout(a, product.a); })
        .then([&] { return init_layout(b, product.b); })
        .then([&] { return init_layout(c, product.c); })
        .then([&] { return init_preference(preference, product, context); })
        .then([&] {
          return cublasLtMatmulAlgoGetHeuristic(context.cublas_lt, &desc, &b, &a, &c, &c, &preference,
                                                std::min(most, kMostAlgorithms), algorithms, &found);
        })
        .status();
  }

  bool has(int algorithm) const {
    return algorithm < found && algorithms[algorithm].state == CUBLAS_STATUS_SUCCESS;
  }
};

}  // namespace

bool cublas_supports(const Product& product) {
  const fb::DType factors = product.b.dtype, result = product.c.dtype;
  if (product.a.dtype != factors) return false;
  if (product.bias && result != factors) return false;
  const bool half = factors == fb::DType::BF16 || factors == fb::DType::F16;
  return (factors == fb::DType::F32 && result == factors) ||
         (half && (result == factors || result == fb::DType::F32));
}

int cublas_algorithms(const Product& product, int most, const CudaContext& context) {
  Problem problem;
  if (!cublas_supports(product) || problem.init(product, most, context) != CUBLAS_STATUS_SUCCESS) return 0;
  int count = 0;
  while (problem.has(count)) ++count;
  return count;
}

cudaError_t multiply_cublas(const Product& product, const CudaContext& context, int algorithm) {
  if (!cublas_supports(product)) return cudaErrorNotSupported;
  if (product.m() == 0 || product.n() == 0) return cudaSuccess;
  Problem problem;
  const float alpha = 1, beta = product.accumulate ? 1.0f : 0.0f;
  void* out = const_cast<void*>(product.c.data);
  return to_cuda_error(
      Steps()
          .then([&] { return problem.init(product, algorithm + 1, context); })
          .then([&] { return problem.has(algorithm) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED; })
          .then([&] {
            return cublasLtMatmul(context.cublas_lt, &problem.desc, &alpha, product.b.data, &problem.b,
                                  product.a.data, &problem.a, &beta, out, &problem.c, out, &problem.c,
                                  &problem.algorithms[algorithm].algo, context.cublas_workspace,
                                  context.cublas_workspace_bytes, context.stream);
          })
          .status());
}

}  // namespace moec::cuda
