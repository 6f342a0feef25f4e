#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x * sigmoid(x); }
double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }
double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double gelu_slope(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
}
double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
/// With (1 + tanh u) / 2 = sigmoid(2u), which does not cancel where u is far below zero.
double gelu_tanh_slope(double x) {
  const double s = sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
  return s + 2 * x * s * (1 - s) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

fb::GeluT gelu_attrs(bool tanh) {
  fb::GeluT attrs;
  attrs.tanh = tanh;
  return attrs;
}
fb::ScaleT scale_attrs(float factor) {
  fb::ScaleT attrs;
  attrs.factor = factor;
  return attrs;
}

/// Every size: nothing, a tail alone, several pieces with a tail.
const std::vector<int64_t> kSizes = {0, 1, 37, 40003};

/// A kernel of one input against f, out of place and in place.
template <class Attrs, class F>
void check_unary(std::string_view key, const Attrs& attrs, F f) {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (int64_t n : kSizes) {
      Tensor x = random.normal(dtype, {n}, 3), y(dtype, {n});
      std::vector<double> expected = x.values();
      for (double& value : expected) value = f(value);
      run(key, attrs, {x}, {y});
      CHECK(max_error(y, expected) < tolerance(dtype));
      run(key, attrs, {x}, {x});
      CHECK(x.same_bits(y));
    }
}

/// A kernel of two inputs against f, out of place and in place of either.
template <class Attrs, class F>
void check_binary(std::string_view key, const Attrs& attrs, F f) {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (int64_t n : kSizes) {
      Tensor a = random.normal(dtype, {n}), b = random.normal(dtype, {n}, 3), y(dtype, {n});
      Tensor a_copy = a.copy();
      std::vector<double> expected;
      for (int64_t i = 0; i < n; ++i) expected.push_back(f(a.get(i), b.get(i)));
      run(key, attrs, {a, b}, {y});
      CHECK(max_error(y, expected) < tolerance(dtype));
      run(key, attrs, {a_copy, b}, {a_copy});
      CHECK(a_copy.same_bits(y));
      run(key, attrs, {a, b}, {b});
      CHECK(b.same_bits(y));
    }
}

TEST_CASE("silu, gelu and scale") {
  check_unary("silu", fb::SiluT{}, silu);
  check_unary("gelu", gelu_attrs(false), gelu);
  check_unary("gelu", gelu_attrs(true), gelu_tanh);
  check_unary("scale", scale_attrs(-0.125f), [](double x) { return -0.125 * x; });
}

TEST_CASE("add and mul, and the derivatives of silu and gelu") {
  check_binary("add", fb::AddT{}, [](double a, double b) { return a + b; });
  check_binary("mul", fb::MulT{}, [](double a, double b) { return a * b; });
  check_binary("silu_bwd", fb::SiluT{}, [](double dy, double x) { return dy * silu_slope(x); });
  check_binary("gelu_bwd", gelu_attrs(false), [](double dy, double x) { return dy * gelu_slope(x); });
  check_binary("gelu_bwd", gelu_attrs(true), [](double dy, double x) { return dy * gelu_tanh_slope(x); });
}

TEST_CASE("f32 activations are accurate element by element, far into the tails") {
  std::vector<double> points;
  for (double x = -12; x <= 12; x += 1.0 / 64) points.push_back(x);
  const auto n = static_cast<int64_t>(points.size());
  const Tensor x(fb::DType::F32, {n}, points);
  const auto check = [&](std::string_view key, const auto& attrs, double (*f)(double)) {
    Tensor y(fb::DType::F32, {n});
    run(key, attrs, {x}, {y});
    for (int64_t i = 0; i < n; ++i) {
      const double expected = f(x.get(i));
      REQUIRE(std::abs(y.get(i) - expected) <= 1e-6 * std::abs(expected) + 1e-8);
    }
  };
  check("silu", fb::SiluT{}, silu);
  check("gelu", gelu_attrs(false), gelu);
  check("gelu", gelu_attrs(true), gelu_tanh);
}

TEST_CASE("activations saturate and propagate NaN") {
  for (fb::DType dtype : kFloatTypes) {
    const Tensor x(dtype, {3}, {-1e4, 1e4, std::nan("")});
    Tensor y(dtype, {3});
    const auto check = [&](std::string_view key, const auto& attrs) {
      run(key, attrs, {x}, {y});
      CHECK(y.get(0) == 0);
      CHECK(y.get(1) == x.get(1));
      CHECK(std::isnan(y.get(2)));
    };
    check("silu", fb::SiluT{});
    check("gelu", gelu_attrs(false));
    check("gelu", gelu_attrs(true));
  }
}

TEST_CASE("swiglu multiplies silu of the even columns with the odd ones") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    Tensor x = random.normal(dtype, {77, 2 * 130}, 3), dy = random.normal(dtype, {77, 130});
    Tensor y(dtype, {77, 130}), dx(dtype, {77, 2 * 130});
    std::vector<double> expected, expected_dx;
    for (int64_t i = 0; i < y.elements(); ++i) {
      const double gate = x.get(2 * i), up = x.get(2 * i + 1);
      expected.push_back(silu(gate) * up);
      expected_dx.push_back(dy.get(i) * up * silu_slope(gate));
      expected_dx.push_back(dy.get(i) * silu(gate));
    }
    run("swiglu", fb::SwigluT{}, {x}, {y});
    CHECK(max_error(y, expected) < tolerance(dtype));
    run("swiglu_bwd", fb::SwigluT{}, {dy, x}, {dx, {}});
    CHECK(max_error(dx, expected_dx) < tolerance(dtype));
    run("swiglu_bwd", fb::SwigluT{}, {dy, x}, {x, dy});
    CHECK(x.same_bits(dx));
    CHECK(max_error(dy, expected) < tolerance(dtype));
  }
}

}  // namespace
}  // namespace moec::test
