#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

/// c[m,n] = a[m,k] b[k,n] + start, in f64; `start` has m*n elements or none.
std::vector<double> reference_product(int64_t m, int64_t n, int64_t k, auto&& a, auto&& b,
                                      const std::vector<double>& start = {}) {
  std::vector<double> c = start;
  c.resize(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) c[static_cast<size_t>(i * n + j)] += a(i, p) * b(p, j);
    }
  }
  return c;
}

/// Rows, inputs and outputs, with a partial, a full and more than one tile in each.
struct Shape {
  int64_t rows, in, out;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {1, 65, 7}, {7, 33, 1}, {33, 7, 65}, {70, 300, 130}, {260, 64, 40}};

TEST_CASE("linear is x weight^T + bias") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (auto [rows, in, out] : kShapes) {
      for (bool biased : {false, true}) {
        for (bool full_precision : {false, true}) {
          INFO(fb::EnumNameDType(dtype), ", rows ", rows, ", in ", in, ", out ", out, ", biased ", biased,
               ", full_precision ", full_precision);
          const Tensor x = random.normal(dtype, {1, rows, in}), weight = random.normal(dtype, {out, in});
          const Tensor bias = random.normal(dtype, {out});
          const Tensor y(full_precision ? accumulator(dtype) : dtype, {1, rows, out});
          fb::LinearT attrs;
          attrs.bias = biased;
          attrs.full_precision = full_precision;
          run("linear", attrs, {x, weight, biased ? bias : TensorView{}}, {y});
          std::vector<double> start;
          for (int64_t i = 0; i < rows * out; ++i) start.push_back(biased ? bias.get(i % out) : 0);
          const auto expected = reference_product(
              rows, out, in, [&](int64_t i, int64_t p) { return x.get(i * in + p); },
              [&](int64_t p, int64_t j) { return weight.get(j * in + p); }, start);
          CHECK(max_error(y, expected) < tolerance(y.view().dtype));
        }
      }
    }
  }
}

TEST_CASE("linear_bwd_input is dy weight") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (auto [rows, in, out] : kShapes) {
      for (fb::DType dy_dtype : {dtype, accumulator(dtype)}) {
        INFO(fb::EnumNameDType(dtype), ", rows ", rows, ", in ", in, ", out ", out);
        const Tensor dy = random.normal(dy_dtype, {rows, out}), weight = random.normal(dtype, {out, in});
        const Tensor dx(dtype, {rows, in});
        run("linear_bwd_input", fb::LinearT{}, {dy, weight}, {dx});
        const auto expected = reference_product(
            rows, in, out, [&](int64_t i, int64_t p) { return dy.get(i * out + p); },
            [&](int64_t p, int64_t j) { return weight.get(p * in + j); });
        CHECK(max_error(dx, expected) < tolerance(dtype));
      }
    }
  }
}

TEST_CASE("linear_bwd_weight is dy^T x, added to the gradient so far if there is one") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (auto [rows, in, out] : kShapes) {
      for (fb::DType grad_dtype : {dtype, accumulator(dtype)}) {
        for (bool accumulate : {false, true}) {
          INFO(fb::EnumNameDType(dtype), ", rows ", rows, ", in ", in, ", out ", out, ", accumulate ",
               accumulate);
          const Tensor dy = random.normal(grad_dtype, {rows, out}), x = random.normal(dtype, {rows, in});
          const Tensor dweight =
              accumulate ? random.normal(grad_dtype, {out, in}) : Tensor(grad_dtype, {out, in});
          const auto expected = reference_product(
              out, in, rows, [&](int64_t i, int64_t p) { return dy.get(p * out + i); },
              [&](int64_t p, int64_t j) { return x.get(p * in + j); },
              accumulate ? dweight.values() : std::vector<double>{});
          run("linear_bwd_weight", fb::LinearT{}, {dy, x, accumulate ? dweight : TensorView{}}, {dweight});
          CHECK(max_error(dweight, expected) < tolerance(grad_dtype));
        }
      }
    }
  }
}

TEST_CASE("bias_bwd sums dy over rows, added to the gradient so far if there is one") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (int64_t rows : {1, 7, 64, 65, 333}) {
      for (fb::DType grad_dtype : {dtype, accumulator(dtype)}) {
        for (bool accumulate : {false, true}) {
          INFO(fb::EnumNameDType(dtype), ", rows ", rows, ", accumulate ", accumulate);
          const Tensor dy = random.normal(dtype, {rows, 33});
          const Tensor dbias = accumulate ? random.normal(grad_dtype, {33}) : Tensor(grad_dtype, {33});
          const auto expected = reference_product(
              1, 33, rows, [](int64_t, int64_t) { return 1.0; },
              [&](int64_t p, int64_t j) { return dy.get(p * 33 + j); },
              accumulate ? dbias.values() : std::vector<double>{});
          run("bias_bwd", fb::LinearT{}, {dy, accumulate ? dbias : TensorView{}}, {dbias});
          CHECK(max_error(dbias, expected) < tolerance(grad_dtype));
        }
      }
    }
  }
}

TEST_CASE("linear is right where the output is cut into larger tiles") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (auto [rows, in, out] : {Shape{1030, 3, 520}, Shape{2050, 3, 1030}}) {
      INFO(fb::EnumNameDType(dtype), ", rows ", rows);
      const Tensor x = random.normal(dtype, {rows, in}), weight = random.normal(dtype, {out, in});
      const Tensor y(dtype, {rows, out});
      run("linear", fb::LinearT{}, {x, weight, {}}, {y});
      const auto expected = reference_product(
          rows, out, in, [&](int64_t i, int64_t p) { return x.get(i * in + p); },
          [&](int64_t p, int64_t j) { return weight.get(j * in + p); });
      CHECK(max_error(y, expected) < tolerance(dtype));
    }
  }
}

TEST_CASE("linear kernels give the same bits with any number of threads") {
  for (fb::DType dtype : kFloatTypes) {
    check_same_bits_for_any_threads([&] {
      Random random(7);
      const Tensor x = random.normal(dtype, {700, 130}), weight = random.normal(dtype, {300, 130});
      const Tensor dy = random.normal(dtype, {700, 300});
      std::vector<Tensor> out;
      out.emplace_back(dtype, std::vector<int64_t>{700, 300});
      run("linear", fb::LinearT{}, {x, weight, {}}, {out.back()});
      out.emplace_back(dtype, std::vector<int64_t>{700, 130});
      run("linear_bwd_input", fb::LinearT{}, {dy, weight}, {out.back()});
      out.emplace_back(dtype, std::vector<int64_t>{300, 130});
      run("linear_bwd_weight", fb::LinearT{}, {dy, x, {}}, {out.back()});
      out.emplace_back(dtype, std::vector<int64_t>{300});
      run("bias_bwd", fb::LinearT{}, {dy, {}}, {out.back()});
      return out;
    });
  }
}

}  // namespace
}  // namespace moec::test
