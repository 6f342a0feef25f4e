// Hopper's dense products against sums in f64: ragged in every dimension, of one step of depth and of many,
// into memory that is NaN, gradients overwritten or added to.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "kernels/cuda/hopper/map.h"
#include "kernels/cuda/variants.h"
#include "tests/cuda/shared_tensor.h"

namespace moec::test {
namespace {

enum class Form { kForward, kInput, kWeight };

struct Shape {
  int64_t m, n, k;
};

/// In the Euclidean norm; fails where there is a NaN.
void check_close(const std::vector<double>& actual, const std::vector<double>& exact, double bound) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (actual[i] - exact[i]) * (actual[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  CHECK(std::sqrt(difference) <= bound * std::sqrt(norm));
}

/// Compares the product with exact sums, and a second run with the first, bit by bit.
void check(Form form, fb::DType result, const Shape& shape, bool accumulate) {
  CAPTURE(shape.m);
  CAPTURE(shape.n);
  CAPTURE(shape.k);
  CAPTURE(accumulate);
  const bool weight = form == Form::kWeight, forward = form == Form::kForward;
  SharedTensor a(fb::DType::BF16, {weight ? shape.k : shape.m, weight ? shape.m : shape.k});
  SharedTensor b(fb::DType::BF16, {forward ? shape.n : shape.k, forward ? shape.k : shape.n});
  SharedTensor c(result, {shape.m, shape.n}), workspace(fb::DType::F32, {8 << 20, 1});
  a.fill(1);
  b.fill(2);
  if (accumulate) c.fill(3);
  const std::vector<double> left = a.values(), right = b.values();
  std::vector<double> exact = c.values();
  for (int64_t i = 0; i < shape.m; ++i)
    for (int64_t j = 0; j < shape.n; ++j) {
      double sum = accumulate ? exact[static_cast<size_t>(i * shape.n + j)] : 0;
      for (int64_t k = 0; k < shape.k; ++k)
        sum += left[static_cast<size_t>(weight ? k * shape.m + i : i * shape.k + k)] *
               right[static_cast<size_t>(forward ? j * shape.k + k : k * shape.n + j)];
      exact[static_cast<size_t>(i * shape.n + j)] = sum;
    }
  cuda::CudaContext context = {};
  context.sm_count = 4;  // so that each block has several tiles
  context.cublas_workspace = workspace.view().data;
  context.cublas_workspace_bytes = static_cast<size_t>(workspace.view().bytes());
  const char* const kernel = weight ? "linear_bwd_weight" : forward ? "linear" : "linear_bwd_input";
  CAPTURE(kernel);
  // The bias that a layer may have, or the old gradient.
  const TensorView third = accumulate ? c.view() : TensorView{};
  const KernelCall call = {{a.view(), b.view(), third}, {c.view()}, {}, nullptr};
  const cuda::CudaVariant* variant = cuda::find_variant(kernel, "hopper");
  REQUIRE(variant->computes(call, context));
  std::vector<double> first;
  for (int run = 0; run < 2; ++run) {
    if (accumulate) c.fill(3);
    REQUIRE(variant->run(call, context) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    if (run == 0) first = c.values();
  }
  check_close(first, exact, result == fb::DType::F32 ? 1e-5 : 3e-3);
  CHECK(c.values() == first);
}

/// Rotates rows of packed heads, in f64.
void rotate(const fb::RopeT& rope, const Shape& shape, int64_t seq, std::vector<double>& rows) {
  const int64_t dim = rope.head_dim;
  const auto d = static_cast<double>(dim);
  const bool half = rope.style == fb::RopeStyle::Half;
  for (int64_t row = 0; row < shape.m; ++row)
    for (int64_t head = 0; head < rope.heads + rope.kv_heads; ++head)
      for (int64_t pair = 0; pair < dim / 2; ++pair) {
        const double base = rope.base * std::pow(rope.ntk_alpha, d / (d - 2));
        const double angle =
            static_cast<double>(row % seq) * std::pow(base, -2 * static_cast<double>(pair) / d);
        const int64_t at = row * shape.n + head * dim + (half ? pair : 2 * pair);
        double &first = rows[static_cast<size_t>(at)],
               &second = rows[static_cast<size_t>(at + (half ? dim / 2 : 1))];
        const double x1 = first, x2 = second;
        first = x1 * std::cos(angle) - x2 * std::sin(angle);
        second = x1 * std::sin(angle) + x2 * std::cos(angle);
      }
}

/// The product and its rotation in one pass against those in f64.
void check_rotated(const fb::RopeT& rope, const Shape& shape, int64_t seq) {
  SharedTensor x(fb::DType::BF16, {shape.m, shape.k}), weight(fb::DType::BF16, {shape.n, shape.k});
  SharedTensor y(fb::DType::BF16, {shape.m, shape.n});
  x.fill(1);
  weight.fill(2);
  std::vector<double> exact(static_cast<size_t>(shape.m * shape.n));
  for (int64_t i = 0; i < shape.m; ++i)
    for (int64_t j = 0; j < shape.n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < shape.k; ++k) sum += x.get(i * shape.k + k) * weight.get(j * shape.k + k);
      exact[static_cast<size_t>(i * shape.n + j)] = sum;
    }
  rotate(rope, shape, seq, exact);
  TensorView sequences = y.view();
  sequences.rank = 3;
  sequences.shape = {shape.m / seq, seq, shape.n};
  fb::OpUnion op;
  op.Set(fb::RopeT(rope));
  cuda::CudaContext context = {};
  context.sm_count = 4;
  const KernelCall call = {{x.view(), weight.view(), {}}, {sequences}, {}, &op};
  const cuda::CudaVariant* variant = cuda::find_variant("linear_rope", "hopper");
  REQUIRE(variant->computes(call, context));
  REQUIRE(variant->run(call, context) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  check_close(y.values(), exact, 4e-3);
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("Hopper's dense products") {
  if (!cuda::hopper::has_hopper_code()) {
    MESSAGE("no kernels for Hopper in this build, or no such GPU");
    return;
  }
  for (const Shape& shape :
       {Shape{1, 8, 8}, Shape{77, 264, 200}, Shape{520, 336, 64}, Shape{300, 896, 136}}) {
    check(Form::kForward, fb::DType::BF16, shape, false);
    check(Form::kInput, fb::DType::BF16, shape, false);
  }
  for (const Shape& shape : {Shape{8, 8, 1}, Shape{264, 80, 63}, Shape{136, 296, 1100}, Shape{40, 64, 5003}})
    for (const bool accumulate : {false, true}) {
      check(Form::kWeight, fb::DType::BF16, shape, accumulate);
      check(Form::kWeight, fb::DType::F32, shape, accumulate);
    }
}

TEST_CASE("Hopper's dense products that rotate queries and keys") {
  if (!cuda::hopper::has_hopper_code()) {
    MESSAGE("no kernels for Hopper in this build, or no such GPU");
    return;
  }
  constexpr int64_t kBatch = 5, kSeq = 77, kDepth = 72;
  for (const auto style : {fb::RopeStyle::Interleaved, fb::RopeStyle::Half})
    for (const int64_t dim : {64, 128}) {
      CAPTURE(dim);
      CAPTURE(fb::EnumNameRopeStyle(style));
      fb::RopeT rope;
      rope.heads = 4;
      rope.kv_heads = 2;
      rope.head_dim = static_cast<uint32_t>(dim);
      rope.style = style;
      rope.ntk_alpha = 8;
      check_rotated(rope, {kBatch * kSeq, 8 * dim, kDepth}, kSeq);
    }
}

TEST_SUITE_END();

}  // namespace moec::test
