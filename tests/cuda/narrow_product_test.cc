// Gradients of layers in full precision, whose dy is f32 and has few columns, over a bf16 model: against sums
// in f64, ragged in every dimension, into memory that is NaN.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>

#include "kernels/cuda/cuda_kernels.h"
#include "tests/cuda/shared_tensor.h"

namespace moec::test {
namespace {

/// `exact(row, col)` is what `result` should hold.
template <class Exact>
void check(const SharedTensor& result, Exact&& exact) {
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
    SharedTensor dy(fb::DType::F32, {rows, narrow}), x(fb::DType::BF16, {rows, cols}),
        w(fb::DType::BF16, {narrow, cols});
    dy.fill(1);
    x.fill(2);
    w.fill(3);
    const SharedTensor dx(fb::DType::BF16, {rows, cols});
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
        SharedTensor dw(dtype, {narrow, cols}), old(dtype, {narrow, cols});
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
