#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

std::vector<double> reference_softmax(const Tensor& x) {
  std::vector<double> y = x.values();
  const auto n = static_cast<size_t>(x.view().cols());
  for (size_t begin = 0; begin < y.size(); begin += n) {
    double max = y[begin], sum = 0;
    for (size_t i = begin; i < begin + n; ++i) max = std::max(max, y[i]);
    for (size_t i = begin; i < begin + n; ++i) sum += y[i] = std::exp(y[i] - max);
    for (size_t i = begin; i < begin + n; ++i) y[i] /= sum;
  }
  return y;
}

const std::vector<std::vector<int64_t>> kShapes = {{1, 1}, {3, 7}, {2, 5, 33}, {3, 5000}};

TEST_CASE("softmax and its derivative") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (const auto& shape : kShapes) {
      Tensor x = random.normal(dtype, shape, 5), y(dtype, shape);
      run("softmax", fb::SoftmaxT{}, {x}, {y});
      CHECK(max_error(y, reference_softmax(x)) < tolerance(dtype));
      run("softmax", fb::SoftmaxT{}, {x}, {x});
      CHECK(x.same_bits(y));

      Tensor dy = random.normal(dtype, shape), dx(dtype, shape);
      std::vector<double> expected;
      const int64_t n = y.view().cols();
      for (int64_t i = 0; i < y.elements(); ++i) {
        double dot = 0;
        for (int64_t j = i / n * n; j < i / n * n + n; ++j) dot += y.get(j) * dy.get(j);
        expected.push_back(y.get(i) * (dy.get(i) - dot));
      }
      run("softmax_bwd", fb::SoftmaxT{}, {dy, y}, {dx});
      // A row of one element has derivative zero: compare absolutely there.
      if (n > 1)
        CHECK(max_error(dx, expected) < tolerance(dtype));
      else
        CHECK(std::abs(dx.get(0)) < tolerance(dtype));
      run("softmax_bwd", fb::SoftmaxT{}, {dy, y}, {dy});
      CHECK(dy.same_bits(dx));
    }
}

TEST_CASE("softmax of extreme rows") {
  const double inf = std::numeric_limits<double>::infinity();
  for (fb::DType dtype : kFloatTypes) {
    const double huge = dtype == fb::DType::F16 ? 6e4 : 1e30;
    const Tensor x(dtype, {4, 3}, {huge, huge, huge, -huge, 0, huge, -inf, 2, -inf, 1, std::nan(""), 1});
    Tensor y(dtype, {4, 3});
    run("softmax", fb::SoftmaxT{}, {x}, {y});
    for (int64_t i = 0; i < 3; ++i) {
      CHECK(y.get(i) == doctest::Approx(1.0 / 3).epsilon(tolerance(dtype)));
      CHECK(y.get(3 + i) == (i == 2 ? 1 : 0));
      CHECK(y.get(6 + i) == (i == 1 ? 1 : 0));
      CHECK(std::isnan(y.get(9 + i)));
    }
  }
}

TEST_CASE("softmax has the same bits for any number of threads") {
  Random random;
  const Tensor x = random.normal(fb::DType::F32, {300, 1000}),
               dy = random.normal(fb::DType::F32, {300, 1000});
  check_same_bits_for_any_threads([&] {
    std::vector<Tensor> out;
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{300, 1000});
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{300, 1000});
    run("softmax", fb::SoftmaxT{}, {x}, {out[0]});
    run("softmax_bwd", fb::SoftmaxT{}, {dy, out[0]}, {out[1]});
    return out;
  });
}

}  // namespace
}  // namespace moec::test
