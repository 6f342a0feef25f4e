// Products of an f32 matrix of few columns with a bf16 matrix, against sums in f64: ragged in every
// dimension, into memory that is NaN.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cuda/product.h"

namespace moec::test {
namespace {

using cuda::Product;
using cuda::ProductForm;
using cuda::ProductMatrix;

/// A matrix that host and device see; fresh contents are NaN.
class Matrix {
 public:
  Matrix(fb::DType dtype, int64_t rows, int64_t cols) : matrix_{nullptr, dtype, rows, cols} {
    void* data = nullptr;
    const auto bytes = static_cast<size_t>(rows * cols * dtype_size(dtype));
    REQUIRE(cudaMallocManaged(&data, bytes) == cudaSuccess);
    std::memset(data, 0xff, bytes);
    memory_.reset(data);
    matrix_.data = data;
  }

  const ProductMatrix& view() const { return matrix_; }
  double get(int64_t row, int64_t col) const {
    const int64_t i = row * matrix_.cols + col;
    return matrix_.dtype == fb::DType::F32
               ? static_cast<double>(static_cast<const float*>(matrix_.data)[i])
               : static_cast<double>(float{static_cast<const __nv_bfloat16*>(matrix_.data)[i]});
  }
  void fill(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < matrix_.rows * matrix_.cols; ++i) {
      if (matrix_.dtype == fb::DType::F32)
        static_cast<float*>(memory_.get())[i] = normal(random);
      else
        static_cast<__nv_bfloat16*>(memory_.get())[i] = __nv_bfloat16(normal(random));
    }
  }

 private:
  struct Free {
    void operator()(void* data) const { cudaFree(data); }
  };
  ProductMatrix matrix_;
  std::unique_ptr<void, Free> memory_;
};

/// Runs the product; `exact(row, col)` is its result, and sums are of this order of magnitude.
template <class Exact>
void check(const Product& product, const Matrix& result, const cuda::CudaContext& context, Exact&& exact) {
  REQUIRE(cuda::is_narrow(product));
  REQUIRE(cuda::multiply_narrow(product, context) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const double bound = result.view().dtype == fb::DType::F32 ? 1e-6 : 3e-3;
  double error = 0, norm = 0;
  for (int64_t row = 0; row < result.view().rows; ++row)
    for (int64_t col = 0; col < result.view().cols; ++col) {
      const double wanted = exact(row, col), difference = result.get(row, col) - wanted;
      error += difference * difference;
      norm += wanted * wanted;
    }
  CHECK(std::sqrt(error) <= bound * std::sqrt(norm));
}

struct Shape {
  int64_t rows, narrow, cols;
};

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("products of an f32 matrix of few columns") {
  cuda::CudaContext context;
  context.kernels_overlap = cuda::kernels_can_overlap();
  for (const auto& [rows, narrow, cols] :
       {Shape{4096, 16, 64}, Shape{3001, 5, 136}, Shape{1357, 33, 200}, Shape{515, 64, 1032}}) {
    CAPTURE(rows);
    CAPTURE(narrow);
    CAPTURE(cols);
    Matrix dy(fb::DType::F32, rows, narrow), x(fb::DType::BF16, rows, cols), w(fb::DType::BF16, narrow, cols);
    dy.fill(1);
    x.fill(2);
    w.fill(3);
    const Matrix dx(fb::DType::BF16, rows, cols);
    check({.form = ProductForm::kInput, .a = dy.view(), .b = w.view(), .c = dx.view()}, dx, context,
          [&](int64_t row, int64_t col) {
            double sum = 0;
            for (int64_t i = 0; i < narrow; ++i) sum += dy.get(row, i) * w.get(i, col);
            return sum;
          });
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16})
      for (const bool accumulate : {false, true}) {
        Matrix dw(dtype, narrow, cols), old(dtype, narrow, cols);
        if (accumulate) {
          dw.fill(4);
          old.fill(4);
        }
        check({.form = ProductForm::kWeight,
               .a = dy.view(),
               .b = x.view(),
               .c = dw.view(),
               .accumulate = accumulate},
              dw, context, [&](int64_t row, int64_t col) {
                double sum = accumulate ? old.get(row, col) : 0;
                for (int64_t i = 0; i < rows; ++i) sum += dy.get(i, row) * x.get(i, col);
                return sum;
              });
      }
  }
}

TEST_SUITE_END();

}  // namespace moec::test
