// The grouped products of Hopper's kernels against the CPU device's in f64: ragged, empty, one expert takes
// all, rows behind the last expert that are NaN and stay so.
#include "kernels/cuda/hopper/grouped_linear.h"

#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/gradient_squares.h"
#include "tests/cuda/shared_tensor.h"

namespace moec::test {
namespace {

namespace hopper = cuda::hopper;

/// The same tensor in f64, for the CPU device.
struct Wide {
  std::vector<double> values;
  TensorView view;

  explicit Wide(const SharedTensor& tensor) : values(tensor.values()), view(tensor.view()) {
    view.dtype = fb::DType::F64;
    view.data = values.data();
  }
};

struct Routing {
  std::vector<int64_t> counts;
  int64_t padding;

  int64_t experts() const { return static_cast<int64_t>(counts.size()); }
  int64_t used() const {
    int64_t sum = 0;
    for (const int64_t count : counts) sum += count;
    return sum;
  }
  int64_t capacity() const { return used() + padding; }
};

const std::vector<Routing> kRoutings = {
    {{128, 256}, 0}, {{1, 0, 77, 300, 0}, 50}, {{0, 0, 513}, 3}, {{0, 0}, 5}, {{63, 65, 129, 700}, 130}};

/// A problem with weights [experts, out, in]; neither is a multiple of a tile, but both, and half of kOut, of
/// whole 16 bytes, as TMA wants rows.
struct Problem {
  static constexpr int64_t kIn = 200, kOut = 336;
  const Routing& routing;
  std::mt19937_64 rng{5};
  cuda::CudaContext context = {};
  SharedTensor offsets, weight;

  explicit Problem(const Routing& r, int64_t out = kOut, int64_t in = kIn)
      : routing(r),
        offsets(fb::DType::I32, {r.experts() + 1}),
        weight(fb::DType::BF16, {r.experts(), out, in}) {
    context.sm_count = 4;  // so that each block has several tiles
    int64_t sum = 0;
    for (int64_t e = 0; e <= r.experts(); ++e) {
      offsets.set(e, static_cast<double>(sum));
      if (e < r.experts()) sum += r.counts[static_cast<size_t>(e)];
    }
    fill(weight, weight.elements(), 0.1);
  }

  void fill(SharedTensor& tensor, int64_t count, double scale) {
    std::normal_distribution<double> normal(0, scale);
    for (int64_t i = 0; i < count; ++i) tensor.set(i, normal(rng));
  }
  /// [capacity, cols], of which those of experts are random.
  SharedTensor rows(int64_t cols) {
    SharedTensor tensor(fb::DType::BF16, {routing.capacity(), cols});
    fill(tensor, routing.used() * cols, 1);
    return tensor;
  }
  SharedTensor result(int64_t cols) const { return {fb::DType::BF16, {routing.capacity(), cols}}; }
  void check_rows(const SharedTensor& actual, const std::vector<double>& expected) const {
    check(actual, expected, routing.used() * actual.view().cols(), 6e-3);
    for (int64_t i = routing.used() * actual.view().cols(); i < actual.elements(); ++i)
      REQUIRE(std::isnan(actual.get(i)));
  }
  /// Compares the first `count` elements in the Euclidean norm.
  static void check(const SharedTensor& actual, const std::vector<double>& expected, int64_t count,
                    double bound) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double exact = expected[static_cast<size_t>(i)];
      difference += (actual.get(i) - exact) * (actual.get(i) - exact);
      norm += exact * exact;
    }
    CHECK(std::sqrt(difference) <= bound * std::sqrt(norm));  // fails where there is a NaN
  }
};

/// `count` experts that have 1 to 5 rows, each of which is a tile of its own.
Routing small_experts(int64_t count, int64_t padding) {
  Routing routing = {{}, padding};
  for (int64_t e = 0; e < count; ++e) routing.counts.push_back(1 + e % 5);
  return routing;
}

/// What a launcher enqueued ran without an error.
void finish(cudaError_t launched) {
  REQUIRE(launched == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

bool without_hopper() {
  if (hopper::available()) return false;
  MESSAGE("no kernels for Hopper in this build, or no such GPU");
  return true;
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("Hopper's grouped_linear, alone and with SwiGLU") {
  if (without_hopper()) return;
  for (const Routing& routing : kRoutings) {
    CAPTURE(routing.capacity());
    Problem p(routing);
    const SharedTensor rows = p.rows(Problem::kIn), h = p.result(Problem::kOut), h2 = p.result(Problem::kOut),
                       y = p.result(Problem::kOut / 2);
    finish(hopper::grouped_linear(rows, p.offsets, p.weight, h, p.context));
    finish(hopper::grouped_linear_swiglu(rows, p.offsets, p.weight, h2, y, p.context));
    Wide exact_rows(rows), exact_weight(p.weight), exact_h(h), exact_y(y);
    cpu::grouped_linear_swiglu({.inputs = {exact_rows.view, p.offsets, exact_weight.view, {}},
                                .outputs = {exact_h.view, exact_y.view}});
    p.check_rows(h, exact_h.values);
    p.check_rows(y, exact_y.values);
    CHECK(std::memcmp(h.view().data, h2.view().data, static_cast<size_t>(h.view().bytes())) == 0);
  }
}

TEST_CASE("Hopper's grouped_linear_bwd_input, alone and with the gradient of SwiGLU") {
  if (without_hopper()) return;
  for (const Routing& routing : kRoutings) {
    CAPTURE(routing.capacity());
    Problem p(routing);
    const SharedTensor dy = p.rows(Problem::kOut), drows = p.result(Problem::kIn),
                       h = p.rows(2 * Problem::kIn), dh = p.result(2 * Problem::kIn),
                       dh_alone = p.result(2 * Problem::kIn), y = p.result(Problem::kIn);
    Wide exact_dy(dy), exact_weight(p.weight), exact_h(h), exact_drows(drows), exact_dh(dh), exact_y(y);
    cpu::grouped_linear_bwd_input(
        {.inputs = {exact_dy.view, p.offsets, exact_weight.view}, .outputs = {exact_drows.view}});
    cpu::grouped_linear_bwd_input_swiglu(
        {.inputs = {exact_dy.view, p.offsets, exact_weight.view, exact_h.view},
         .outputs = {exact_dh.view, exact_y.view}});
    finish(hopper::grouped_linear_bwd_input(dy, p.offsets, p.weight, drows, p.context));
    p.check_rows(drows, exact_drows.values);
    finish(hopper::grouped_linear_bwd_input_swiglu(dy, p.offsets, p.weight, h, dh, y, p.context));
    p.check_rows(dh, exact_dh.values);
    p.check_rows(y, exact_y.values);
    const auto size = static_cast<size_t>(h.view().bytes());
    finish(hopper::grouped_linear_bwd_input_swiglu(dy, p.offsets, p.weight, h, dh_alone, {}, p.context));
    CHECK(std::memcmp(dh_alone.view().data, dh.view().data, size) == 0);
    finish(hopper::grouped_linear_bwd_input_swiglu(dy, p.offsets, p.weight, h, h, y, p.context));
    CHECK(std::memcmp(h.view().data, dh.view().data, size) == 0);
  }
}

/// Tiles are counted for clusters: up to 256 rows of an expert and 256 columns. They fill waves of 66, and
/// those of a last wave of at most 33 are split.
TEST_CASE("Hopper's products of rows split the tiles of a last wave along depth") {
  if (without_hopper()) return;
  struct Case {
    Routing routing;
    int64_t cols;
    bool splits;
  };
  const std::vector<Case> cases = {{small_experts(66, 0), 40, false},
                                   {small_experts(69, 9), 40, true},
                                   {small_experts(33, 1), 40, true},
                                   {small_experts(34, 0), 40, false},
                                   {{{0, 0}, 5}, 40, false},
                                   {{{0, 700, 0}, 70}, 264, true},
                                   {{{63, 65, 129, 700, 0, 1, 257}, 130}, 296, true}};
  constexpr int64_t kDepth = 33 * 64 + 8, kUnits = 66, kUnitSums = int64_t{256} * 256;
  const SharedTensor workspace(fb::DType::F32, {kUnits, kUnitSums});
  const auto bytes = static_cast<size_t>(workspace.view().bytes());
  for (const auto& [routing, cols, splits] : cases)
    for (const bool backward : {false, true}) {
      CAPTURE(routing.capacity());
      CAPTURE(backward);
      Problem p(routing, backward ? kDepth : cols, backward ? cols : kDepth);
      const SharedTensor rows = p.rows(kDepth), y = p.result(cols), again = p.result(cols),
                         whole = p.result(cols);
      const auto multiply = [&](const SharedTensor& to) {
        finish(backward ? hopper::grouped_linear_bwd_input(rows, p.offsets, p.weight, to, p.context)
                        : hopper::grouped_linear(rows, p.offsets, p.weight, to, p.context));
      };
      Wide exact_rows(rows), exact_weight(p.weight), exact(y);
      const KernelCall call = {.inputs = {exact_rows.view, p.offsets, exact_weight.view, {}},
                               .outputs = {exact.view}};
      backward ? cpu::grouped_linear_bwd_input(call) : cpu::grouped_linear(call);

      std::memset(workspace.view().data, 0xff, bytes);
      p.context.cublas_workspace = workspace.view().data;
      p.context.cublas_workspace_bytes = bytes;
      multiply(y);
      p.check_rows(y, exact.values);
      CHECK(std::isnan(workspace.get(0)) != splits);
      p.context.sm_count = 132;
      multiply(again);
      CHECK(std::memcmp(y.view().data, again.view().data, static_cast<size_t>(y.view().bytes())) == 0);
      p.context.cublas_workspace_bytes = bytes - 1;
      multiply(whole);
      p.check_rows(whole, exact.values);
    }
}

/// Holds sums of squares against those of the gradient as it is stored.
void check_squares(const SharedTensor& dweight, const SharedTensor& squares) {
  const TensorView &gradient = dweight.view(), &sums = squares.view();
  std::vector<double> expected(static_cast<size_t>(sums.elements()));
  for (int64_t i = 0; i < gradient.elements(); ++i) {
    const int64_t row = i / gradient.dim(2), col = i % gradient.dim(2);
    const int64_t band = row / gradient.dim(1) * sums.dim(1) + row % gradient.dim(1) / kSquaresRows;
    expected[static_cast<size_t>(band * sums.dim(2) + col / kSquaresCols)] += dweight.get(i) * dweight.get(i);
  }
  for (int64_t i = 0; i < sums.elements(); ++i)
    REQUIRE(squares.get(i) == doctest::Approx(expected[static_cast<size_t>(i)]).epsilon(1e-5));
}

TEST_CASE("Hopper's sums of squares do not overflow f32") {
  if (without_hopper()) return;
  Problem p(kRoutings[0]);
  SharedTensor dy = p.rows(Problem::kOut);
  const SharedTensor rows = p.rows(Problem::kIn);
  for (int64_t i = 0; i < dy.elements(); ++i) dy.set(i, dy.get(i) * 1e25);
  const SharedTensor dweight(fb::DType::F32, {kRoutings[0].experts(), Problem::kOut, Problem::kIn});
  const SharedTensor squares(fb::DType::F64,
                             squares_shape(kRoutings[0].experts(), Problem::kOut, Problem::kIn));
  finish(hopper::grouped_linear_bwd_weight(dy, rows, p.offsets, dweight, false, squares, p.context));
  check_squares(dweight, squares);
}

/// An expert without rows gets 0, or keeps what it has.
TEST_CASE("Hopper's grouped_linear_bwd_weight overwrites or adds") {
  if (without_hopper()) return;
  for (const Routing& routing : kRoutings)
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16})
      for (const bool accumulate : {false, true}) {
        CAPTURE(routing.capacity());
        CAPTURE(fb::EnumNameDType(dtype));
        CAPTURE(accumulate);
        Problem p(routing);
        const SharedTensor dy = p.rows(Problem::kOut), rows = p.rows(Problem::kIn);
        SharedTensor dweight(dtype, {routing.experts(), Problem::kOut, Problem::kIn});
        if (accumulate) p.fill(dweight, dweight.elements(), 1);
        Wide exact_dy(dy), exact_rows(rows), exact(dweight);
        cpu::grouped_linear_bwd_weight(
            {.inputs = {exact_dy.view, exact_rows.view, p.offsets, accumulate ? exact.view : TensorView{}},
             .outputs = {exact.view, {}}});
        SharedTensor squares(fb::DType::F64, squares_shape(routing.experts(), Problem::kOut, Problem::kIn));
        finish(hopper::grouped_linear_bwd_weight(dy, rows, p.offsets, dweight, accumulate,
                                                 accumulate ? TensorView{} : squares, p.context));
        if (!accumulate) check_squares(dweight, squares);
        Problem::check(dweight, exact.values, dweight.elements(), dtype == fb::DType::F32 ? 1e-5 : 6e-3);
        const int64_t size = Problem::kOut * Problem::kIn;
        for (int64_t i = 0; i < dweight.elements(); ++i)
          if (routing.counts[static_cast<size_t>(i / size)] == 0)
            REQUIRE(dweight.get(i) == exact.values[static_cast<size_t>(i)]);
      }
}

TEST_SUITE_END();

}  // namespace moec::test
