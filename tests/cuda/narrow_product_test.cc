// Gradients of layers in full precision, whose dy is f32 and has few columns, over a bf16 model: against sums
// in f64, ragged in every dimension, into memory that is NaN.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::test {
namespace {

/// A matrix that host and device see; fresh contents are NaN.
class Matrix {
 public:
  Matrix(fb::DType dtype, int64_t rows, int64_t cols) {
    view_.dtype = dtype;
    view_.rank = 2;
    view_.shape = {rows, cols};
    void* data = nullptr;
    REQUIRE(cudaMallocManaged(&data, static_cast<size_t>(view_.bytes())) == cudaSuccess);
    std::memset(data, 0xff, static_cast<size_t>(view_.bytes()));
    memory_.reset(data);
    view_.data = data;
  }

  const TensorView& view() const { return view_; }
  double get(int64_t row, int64_t col) const {
    const int64_t i = row * view_.cols() + col;
    return view_.dtype == fb::DType::F32 ? static_cast<double>(view_.as<float>()[i])
                                         : static_cast<double>(float{view_.as<__nv_bfloat16>()[i]});
  }
  void fill(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < view_.elements(); ++i) {
      if (view_.dtype == fb::DType::F32)
        view_.as<float>()[i] = normal(random);
      else
        view_.as<__nv_bfloat16>()[i] = __nv_bfloat16(normal(random));
    }
  }

 private:
  struct Free {
    void operator()(void* data) const { cudaFree(data); }
  };
  TensorView view_;
  std::unique_ptr<void, Free> memory_;
};

/// `exact(row, col)` is what `result` should hold.
template <class Exact>
void check(const Matrix& result, Exact&& exact) {
  const double bound = result.view().dtype == fb::DType::F32 ? 1e-6 : 3e-3;
  double error = 0, norm = 0;
  for (int64_t row = 0; row < result.view().rows(); ++row)
    for (int64_t col = 0; col < result.view().cols(); ++col) {
      const double wanted = exact(row, col), difference = result.get(row, col) - wanted;
      error += difference * difference;
      norm += wanted * wanted;
    }
  CHECK(std::sqrt(error) <= bound * std::sqrt(norm));
}

void finish(cudaError_t error) {
  REQUIRE(error == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

struct Shape {
  int64_t rows, narrow, cols;
};

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("gradients of a layer in full precision with few features") {
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
    finish(cuda::linear_bwd_input({.inputs = {dy.view(), w.view()}, .outputs = {dx.view()}}, context));
    check(dx, [&](int64_t row, int64_t col) {
      double sum = 0;
      for (int64_t i = 0; i < narrow; ++i) sum += dy.get(row, i) * w.get(i, col);
      return sum;
    });
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16})
      for (const bool accumulate : {false, true}) {
        CAPTURE(fb::EnumNameDType(dtype));
        CAPTURE(accumulate);
        Matrix dw(dtype, narrow, cols), old(dtype, narrow, cols);
        if (accumulate) {
          dw.fill(4);
          old.fill(4);
        }
        finish(cuda::linear_bwd_weight(
            {.inputs = {dy.view(), x.view(), accumulate ? dw.view() : TensorView{}}, .outputs = {dw.view()}},
            context));
        check(dw, [&](int64_t row, int64_t col) {
          double sum = accumulate ? old.get(row, col) : 0;
          for (int64_t i = 0; i < rows; ++i) sum += dy.get(i, row) * x.get(i, col);
          return sum;
        });
      }
  }
}

TEST_SUITE_END();

}  // namespace moec::test
