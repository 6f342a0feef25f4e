#include "kernels/gradient_squares.h"
#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

constexpr int64_t kIn = 33;
constexpr int64_t kOut = 70;

/// Rows per expert, and the rows that the tensors have room for.
struct Routing {
  std::vector<int64_t> counts;
  int64_t capacity;

  int64_t experts() const { return static_cast<int64_t>(counts.size()); }
  Tensor offsets() const {
    Tensor tensor(fb::DType::I32, {experts() + 1});
    int64_t sum = 0;
    for (int64_t e = 0; e <= experts(); ++e) {
      tensor.set(e, static_cast<double>(sum));
      if (e < experts()) sum += counts[static_cast<size_t>(e)];
    }
    return tensor;
  }
  /// Random rows [capacity, cols], NaN where they belong to no expert.
  Tensor rows(Random& random, fb::DType dtype, int64_t cols) const {
    Tensor tensor(dtype, {capacity, cols});
    const Tensor values = random.normal(dtype, {capacity, cols});
    for (int64_t i = 0; i < used() * cols; ++i) tensor.set(i, values.get(i));
    return tensor;
  }
  int64_t used() const {
    int64_t sum = 0;
    for (int64_t count : counts) sum += count;
    return sum;
  }
  /// Calls body(expert, row) for all rows that belong to an expert.
  void for_each_row(auto&& body) const {
    int64_t row = 0;
    for (int64_t e = 0; e < experts(); ++e) {
      for (int64_t i = 0; i < counts[static_cast<size_t>(e)]; ++i) body(e, row++);
    }
  }
};

const std::vector<Routing> kRoutings = {
    {{1}, 1}, {{7, 0, 33, 1}, 41}, {{0, 65, 0, 130}, 200}, {{0, 0, 300, 0}, 300}, {{0, 0}, 3},
};

/// The first rows against `expected`, and that the padding rows after them are untouched: still NaN.
void check_rows(const Tensor& actual, const std::vector<double>& expected, double bound) {
  Tensor head(actual.view().dtype, {static_cast<int64_t>(expected.size())});
  for (int64_t i = 0; i < head.elements(); ++i) head.set(i, actual.get(i));
  CHECK(max_error(head, expected) < bound);
  for (int64_t i = head.elements(); i < actual.elements(); ++i) REQUIRE(std::isnan(actual.get(i)));
}

TEST_CASE("grouped_linear multiplies the rows of each expert with its weight") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (const Routing& routing : kRoutings) {
      for (bool biased : {false, true}) {
        INFO(fb::EnumNameDType(dtype), ", capacity ", routing.capacity, ", biased ", biased);
        const Tensor rows = routing.rows(random, dtype, kIn), offsets = routing.offsets();
        const Tensor weight = random.normal(dtype, {routing.experts(), kOut, kIn});
        const Tensor bias = random.normal(dtype, {routing.experts(), kOut});
        const Tensor y(dtype, {routing.capacity, kOut});
        run("grouped_linear", fb::GroupedLinearT{}, {rows, offsets, weight, biased ? bias : TensorView{}},
            {y});
        std::vector<double> expected;
        routing.for_each_row([&](int64_t e, int64_t row) {
          for (int64_t o = 0; o < kOut; ++o) {
            double sum = biased ? bias.get(e * kOut + o) : 0;
            for (int64_t i = 0; i < kIn; ++i)
              sum += rows.get(row * kIn + i) * weight.get((e * kOut + o) * kIn + i);
            expected.push_back(sum);
          }
        });
        check_rows(y, expected, tolerance(dtype));
      }
    }
  }
}

TEST_CASE("grouped_linear_bwd_input multiplies dy with the weight of its expert") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (const Routing& routing : kRoutings) {
      INFO(fb::EnumNameDType(dtype), ", capacity ", routing.capacity);
      const Tensor dy = routing.rows(random, dtype, kOut), offsets = routing.offsets();
      const Tensor weight = random.normal(dtype, {routing.experts(), kOut, kIn});
      const Tensor drows(dtype, {routing.capacity, kIn});
      run("grouped_linear_bwd_input", fb::GroupedLinearT{}, {dy, offsets, weight}, {drows});
      std::vector<double> expected;
      routing.for_each_row([&](int64_t e, int64_t row) {
        for (int64_t i = 0; i < kIn; ++i) {
          double sum = 0;
          for (int64_t o = 0; o < kOut; ++o)
            sum += dy.get(row * kOut + o) * weight.get((e * kOut + o) * kIn + i);
          expected.push_back(sum);
        }
      });
      check_rows(drows, expected, tolerance(dtype));
    }
  }
}

/// Every row belongs to an expert: what SwiGLU makes of others is undefined.
TEST_CASE("grouped kernels with SwiGLU do what their parts do") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    INFO(fb::EnumNameDType(dtype));
    const Routing routing{{7, 0, 33, 1}, 41};
    const Tensor rows = routing.rows(random, dtype, kIn), offsets = routing.offsets();
    const Tensor weight = random.normal(dtype, {4, kOut, kIn}), bias = random.normal(dtype, {4, kOut});
    const Tensor h(dtype, {41, kOut}), y(dtype, {41, kOut / 2}), h2(dtype, {41, kOut}),
        y2(dtype, {41, kOut / 2});
    run("grouped_linear", fb::GroupedLinearT{}, {rows, offsets, weight, bias}, {h});
    run("swiglu", fb::SwigluT{}, {h}, {y});
    run("grouped_linear_swiglu", fb::GroupedLinearT{}, {rows, offsets, weight, bias}, {h2, y2});
    CHECK(h.values() == h2.values());
    CHECK(y.values() == y2.values());

    const Tensor dout = routing.rows(random, dtype, kIn), down = random.normal(dtype, {4, kIn, kOut / 2});
    const Tensor dy(dtype, {41, kOut / 2}), dh(dtype, {41, kOut}), again(dtype, {41, kOut / 2});
    run("grouped_linear_bwd_input", fb::GroupedLinearT{}, {dout, offsets, down}, {dy});
    run("swiglu_bwd", fb::SwigluT{}, {dy, h}, {dh, {}});
    run("grouped_linear_bwd_input_swiglu", fb::GroupedLinearT{}, {dout, offsets, down, h}, {h2, {}});
    run("grouped_linear_bwd_input_swiglu", fb::GroupedLinearT{}, {dout, offsets, down, h}, {h, again});
    CHECK(h.values() == dh.values());
    CHECK(h2.values() == dh.values());
    CHECK(again.values() == y.values());
  }
}

/// The gradients of weight and bias; an expert without rows keeps its old gradient, or gets 0 when
/// overwritten.
TEST_CASE("grouped parameter gradients sum over the rows of each expert") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (const Routing& routing : kRoutings) {
      for (fb::DType grad_dtype : {dtype, accumulator(dtype)}) {
        for (bool accumulate : {false, true}) {
          INFO(fb::EnumNameDType(dtype), ", capacity ", routing.capacity, ", accumulate ", accumulate);
          const Tensor dy = routing.rows(random, dtype, kOut), rows = routing.rows(random, dtype, kIn);
          const Tensor offsets = routing.offsets();
          const auto gradient = [&](const std::vector<int64_t>& shape) {
            return accumulate ? random.normal(grad_dtype, shape) : Tensor(grad_dtype, shape);
          };
          const Tensor dweight = gradient({routing.experts(), kOut, kIn}),
                       dbias = gradient({routing.experts(), kOut});
          const Tensor squares(fb::DType::F64, squares_shape(routing.experts(), kOut, kIn));
          const auto start = [&](const Tensor& old) {
            return accumulate ? old.values() : std::vector<double>(static_cast<size_t>(old.elements()));
          };
          std::vector<double> expected_weight = start(dweight), expected_bias = start(dbias);
          routing.for_each_row([&](int64_t e, int64_t row) {
            for (int64_t o = 0; o < kOut; ++o) {
              const double g = dy.get(row * kOut + o);
              expected_bias[static_cast<size_t>(e * kOut + o)] += g;
              for (int64_t i = 0; i < kIn; ++i) {
                expected_weight[static_cast<size_t>((e * kOut + o) * kIn + i)] += g * rows.get(row * kIn + i);
              }
            }
          });
          run("grouped_linear_bwd_weight", fb::GroupedLinearT{},
              {dy, rows, offsets, accumulate ? dweight : TensorView{}}, {dweight, squares});
          double sum = 0, expected_sum = 0;
          for (const double piece : squares.values()) sum += piece;
          for (const double value : dweight.values()) expected_sum += value * value;
          CHECK(sum == doctest::Approx(expected_sum).epsilon(1e-12));
          run("grouped_bias_bwd", fb::GroupedLinearT{}, {dy, offsets, accumulate ? dbias : TensorView{}},
              {dbias});
          CHECK(max_error(dweight, expected_weight) < tolerance(grad_dtype));
          CHECK(max_error(dbias, expected_bias) < tolerance(grad_dtype));
        }
      }
    }
  }
}

TEST_CASE("grouped kernels give the same bits with any number of threads") {
  for (fb::DType dtype : kFloatTypes) {
    check_same_bits_for_any_threads([&] {
      Random random(7);
      const Routing routing{{100, 0, 300, 1, 99}, 512};
      const Tensor rows = routing.rows(random, dtype, kIn), dy = routing.rows(random, dtype, kOut);
      const Tensor offsets = routing.offsets(), weight = random.normal(dtype, {5, kOut, kIn});
      std::vector<Tensor> out;
      out.emplace_back(dtype, std::vector<int64_t>{512, kOut});
      run("grouped_linear", fb::GroupedLinearT{}, {rows, offsets, weight, {}}, {out.back()});
      out.emplace_back(dtype, std::vector<int64_t>{512, kIn});
      run("grouped_linear_bwd_input", fb::GroupedLinearT{}, {dy, offsets, weight}, {out.back()});
      out.emplace_back(dtype, std::vector<int64_t>{5, kOut, kIn});
      run("grouped_linear_bwd_weight", fb::GroupedLinearT{}, {dy, rows, offsets, {}}, {out.back(), {}});
      out.emplace_back(dtype, std::vector<int64_t>{5, kOut});
      run("grouped_bias_bwd", fb::GroupedLinearT{}, {dy, offsets, {}}, {out.back()});
      return out;
    });
  }
}

}  // namespace
}  // namespace moec::test
