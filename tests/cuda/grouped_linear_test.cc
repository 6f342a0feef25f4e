// The grouped products of Hopper's kernels against the CPU device's in f64: ragged, empty, one expert takes
// all, rows behind the last expert that are NaN and stay so.
#include "kernels/cuda/hopper/grouped_linear.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/gradient_squares.h"

namespace moec::test {
namespace {

namespace hopper = cuda::hopper;

/// Memory that host and device see; fresh contents are 0xff bytes, which are NaN.
class Shared {
 public:
  Shared(fb::DType dtype, const std::vector<int64_t>& shape) {
    view_.dtype = dtype;
    view_.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), view_.shape.begin());
    void* data = nullptr;
    REQUIRE(cudaMallocManaged(&data, static_cast<size_t>(view_.bytes())) == cudaSuccess);
    std::memset(data, 0xff, static_cast<size_t>(view_.bytes()));
    memory_.reset(data);
    view_.data = data;
  }

  operator const TensorView&() const { return view_; }  // NOLINT: a tensor is passed where a view is wanted
  const TensorView& view() const { return view_; }
  int64_t elements() const { return view_.elements(); }

  double get(int64_t i) const {
    if (view_.dtype == fb::DType::BF16) return static_cast<double>(float{view_.as<__nv_bfloat16>()[i]});
    if (view_.dtype == fb::DType::F64) return view_.as<double>()[i];
    return view_.dtype == fb::DType::F32 ? static_cast<double>(view_.as<float>()[i]) : view_.as<int32_t>()[i];
  }
  void set(int64_t i, double value) {
    if (view_.dtype == fb::DType::BF16)
      view_.as<__nv_bfloat16>()[i] = __nv_bfloat16(static_cast<float>(value));
    else if (view_.dtype == fb::DType::F32)
      view_.as<float>()[i] = static_cast<float>(value);
    else
      view_.as<int32_t>()[i] = static_cast<int32_t>(value);
  }
  std::vector<double> values() const {
    std::vector<double> all;
    for (int64_t i = 0; i < elements(); ++i) all.push_back(get(i));
    return all;
  }

 private:
  struct Free {
    void operator()(void* data) const { cudaFree(data); }
  };
  TensorView view_;
  std::unique_ptr<void, Free> memory_;
};

/// The same tensor in f64, for the CPU device.
struct Wide {
  std::vector<double> values;
  TensorView view;

  explicit Wide(const Shared& tensor) : values(tensor.values()), view(tensor.view()) {
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

/// A problem with weights [experts, out, in]; neither is a multiple of a tile, but both, and half of out, of
/// whole 16 bytes, as TMA wants rows.
struct Problem {
  static constexpr int64_t kIn = 200, kOut = 336;
  const Routing& routing;
  std::mt19937_64 rng{5};
  cuda::CudaContext context = {};
  Shared offsets, weight;

  explicit Problem(const Routing& r)
      : routing(r),
        offsets(fb::DType::I32, {r.experts() + 1}),
        weight(fb::DType::BF16, {r.experts(), kOut, kIn}) {
    context.sm_count = 4;  // so that each block has several tiles
    int64_t sum = 0;
    for (int64_t e = 0; e <= r.experts(); ++e) {
      offsets.set(e, static_cast<double>(sum));
      if (e < r.experts()) sum += r.counts[static_cast<size_t>(e)];
    }
    fill(weight, weight.elements(), 0.1);
  }

  void fill(Shared& tensor, int64_t count, double scale) {
    std::normal_distribution<double> normal(0, scale);
    for (int64_t i = 0; i < count; ++i) tensor.set(i, normal(rng));
  }
  /// [capacity, cols], of which those of experts are random.
  Shared rows(int64_t cols) {
    Shared tensor(fb::DType::BF16, {routing.capacity(), cols});
    fill(tensor, routing.used() * cols, 1);
    return tensor;
  }
  Shared result(int64_t cols) const { return {fb::DType::BF16, {routing.capacity(), cols}}; }
  void check_rows(const Shared& actual, const std::vector<double>& expected) const {
    check(actual, expected, routing.used() * actual.view().cols(), 6e-3);
    for (int64_t i = routing.used() * actual.view().cols(); i < actual.elements(); ++i)
      REQUIRE(std::isnan(actual.get(i)));
  }
  /// Compares the first `count` elements in the Euclidean norm.
  static void check(const Shared& actual, const std::vector<double>& expected, int64_t count, double bound) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double exact = expected[static_cast<size_t>(i)];
      difference += (actual.get(i) - exact) * (actual.get(i) - exact);
      norm += exact * exact;
    }
    CHECK(std::sqrt(difference) <= bound * std::sqrt(norm));  // fails where there is a NaN
  }
};

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
    const Shared rows = p.rows(Problem::kIn), h = p.result(Problem::kOut), h2 = p.result(Problem::kOut),
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
    const Shared dy = p.rows(Problem::kOut), drows = p.result(Problem::kIn), h = p.rows(2 * Problem::kIn),
                 dh = p.result(2 * Problem::kIn), dh_alone = p.result(2 * Problem::kIn),
                 y = p.result(Problem::kIn);
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

/// Holds sums of squares against those of the gradient as it is stored.
void check_squares(const Shared& dweight, const Shared& squares) {
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
  Shared dy = p.rows(Problem::kOut);
  const Shared rows = p.rows(Problem::kIn);
  for (int64_t i = 0; i < dy.elements(); ++i) dy.set(i, dy.get(i) * 1e25);
  const Shared dweight(fb::DType::F32, {kRoutings[0].experts(), Problem::kOut, Problem::kIn});
  const Shared squares(fb::DType::F64, squares_shape(kRoutings[0].experts(), Problem::kOut, Problem::kIn));
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
        const Shared dy = p.rows(Problem::kOut), rows = p.rows(Problem::kIn);
        Shared dweight(dtype, {routing.experts(), Problem::kOut, Problem::kIn});
        if (accumulate) p.fill(dweight, dweight.elements(), 1);
        Wide exact_dy(dy), exact_rows(rows), exact(dweight);
        cpu::grouped_linear_bwd_weight(
            {.inputs = {exact_dy.view, exact_rows.view, p.offsets, accumulate ? exact.view : TensorView{}},
             .outputs = {exact.view, {}}});
        Shared squares(fb::DType::F64, squares_shape(routing.experts(), Problem::kOut, Problem::kIn));
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
