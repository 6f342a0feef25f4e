#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

/// Experts [tokens, k], all different within a token, and the index that expert_index makes of them.
struct Index {
  Tensor experts, offsets, permutation, inverse;
};

Index make_index(const Tensor& experts, int64_t n) {
  const int64_t tokens = experts.view().rows(), k = experts.view().cols();
  Index index{experts.copy(), Tensor(fb::DType::I32, {n + 1}), Tensor(fb::DType::I32, {tokens * k}),
              Tensor(fb::DType::I32, {tokens, k})};
  fb::ExpertIndexT attrs;
  attrs.experts = static_cast<uint32_t>(n);
  run("expert_index", attrs, {experts}, {index.offsets, index.permutation, index.inverse});
  return index;
}

/// Different experts for each token; `skewed` leaves all but the first k without any.
Tensor random_experts(Random& random, int64_t tokens, int64_t k, int64_t n, bool skewed) {
  const Tensor start = random.integers({tokens}, static_cast<int32_t>(n));
  Tensor experts(fb::DType::I32, {tokens, k});
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < k; ++j)
      experts.set(t * k + j,
                  skewed ? static_cast<double>(j) : std::fmod(start.get(t) + static_cast<double>(j), n));
  return experts;
}

struct Case {
  int64_t tokens, k, experts;
  bool skewed;
};
const std::vector<Case> kCases = {{1, 1, 1, false},  {7, 1, 4, false},     {65, 2, 8, false},
                                  {33, 4, 4, false}, {3000, 2, 16, false}, {3000, 2, 16, true}};

TEST_CASE("expert_index is a stable sort by expert") {
  Random random;
  for (const Case& c : kCases) {
    const Index index = make_index(random_experts(random, c.tokens, c.k, c.experts, c.skewed), c.experts);
    std::vector<double> order, offsets = {0};
    for (int64_t e = 0; e < c.experts; ++e) {
      for (int64_t a = 0; a < c.tokens * c.k; ++a)
        if (index.experts.get(a) == static_cast<double>(e)) order.push_back(static_cast<double>(a));
      offsets.push_back(static_cast<double>(order.size()));
    }
    CHECK(index.permutation.values() == order);
    CHECK(index.offsets.values() == offsets);
    for (int64_t slot = 0; slot < c.tokens * c.k; ++slot)
      REQUIRE(index.inverse.get(static_cast<int64_t>(index.permutation.get(slot))) ==
              static_cast<double>(slot));
  }
}

/// Rows with more capacity than assignments: the padding is NaN.
Tensor padded_rows(Random& random, fb::DType dtype, int64_t used, int64_t dim) {
  Tensor rows(dtype, {used + 5, dim});
  const Tensor values = random.normal(dtype, {used, dim});
  for (int64_t i = 0; i < values.elements(); ++i) rows.set(i, values.get(i));
  return rows;
}

constexpr int64_t kDim = 301;

TEST_CASE("dispatch copies token rows to their slots and sums their gradients back") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (const Case& c : kCases) {
      const Index index = make_index(random_experts(random, c.tokens, c.k, c.experts, c.skewed), c.experts);
      const int64_t used = c.tokens * c.k;
      const Tensor x = random.normal(dtype, {c.tokens, kDim});
      Tensor rows(dtype, {used + 5, kDim}), dx(dtype, {c.tokens, kDim});
      run("dispatch", fb::DispatchT{}, {x, index.permutation, index.inverse}, {rows});
      for (int64_t i = 0; i < rows.elements(); ++i) {
        if (i >= used * kDim)
          REQUIRE(std::isnan(rows.get(i)));
        else
          REQUIRE(rows.get(i) ==
                  x.get(static_cast<int64_t>(index.permutation.get(i / kDim)) / c.k * kDim + i % kDim));
      }
      const Tensor drows = padded_rows(random, dtype, used, kDim);
      std::vector<double> expected(static_cast<size_t>(dx.elements()));
      for (int64_t i = 0; i < used * kDim; ++i) {
        const int64_t token = static_cast<int64_t>(index.permutation.get(i / kDim)) / c.k;
        expected[static_cast<size_t>(token * kDim + i % kDim)] += drows.get(i);
      }
      run("dispatch_bwd", fb::DispatchT{}, {drows, index.inverse, {}}, {dx});
      CHECK(max_error(dx, expected) < tolerance(dtype));
      const Tensor residual = random.normal(dtype, {c.tokens, kDim});
      for (int64_t i = 0; i < dx.elements(); ++i) expected[static_cast<size_t>(i)] += residual.get(i);
      Tensor in_place = residual.copy();
      run("dispatch_bwd", fb::DispatchT{}, {drows, index.inverse, in_place}, {in_place});
      CHECK(max_error(in_place, expected) < tolerance(dtype));
    }
}

TEST_CASE("combine sums weighted rows; its derivative by rows and weights") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (const Case& c : kCases) {
      const Index index = make_index(random_experts(random, c.tokens, c.k, c.experts, c.skewed), c.experts);
      const int64_t used = c.tokens * c.k;
      const Tensor weights = random.normal(accumulator(dtype), {c.tokens, c.k});
      Tensor rows = padded_rows(random, dtype, used, kDim);
      const Tensor dy = random.normal(dtype, {c.tokens, kDim});
      std::vector<double> y(static_cast<size_t>(c.tokens * kDim)), drows, dweights(static_cast<size_t>(used));
      for (int64_t slot = 0; slot < used; ++slot) {
        const auto a = static_cast<int64_t>(index.permutation.get(slot));
        for (int64_t i = 0; i < kDim; ++i) {
          const int64_t at = a / c.k * kDim + i;
          y[static_cast<size_t>(at)] += weights.get(a) * rows.get(slot * kDim + i);
          dweights[static_cast<size_t>(a)] += dy.get(at) * rows.get(slot * kDim + i);
          drows.push_back(weights.get(a) * dy.get(at));
        }
      }
      Tensor out(dtype, {c.tokens, kDim}), grad(dtype, {used, kDim}), dw(accumulator(dtype), {c.tokens, c.k});
      run("combine", fb::CombineT{}, {rows, weights, index.inverse, index.permutation, {}}, {out});
      CHECK(max_error(out, y) < tolerance(dtype));
      const Tensor residual = random.normal(dtype, {c.tokens, kDim});
      for (int64_t i = 0; i < out.elements(); ++i) y[static_cast<size_t>(i)] += residual.get(i);
      run("combine", fb::CombineT{}, {rows, weights, index.inverse, index.permutation, residual}, {out});
      CHECK(max_error(out, y) < tolerance(dtype));
      run("combine_bwd", fb::CombineT{}, {dy, rows, weights, index.inverse, index.permutation}, {grad, dw});
      CHECK(max_error(grad, drows) < tolerance(dtype));
      CHECK(max_error(dw, dweights) < tolerance(accumulator(dtype)));
      Tensor dw_again(accumulator(dtype), {c.tokens, c.k});
      run("combine_bwd", fb::CombineT{}, {dy, rows, weights, index.inverse, index.permutation},
          {rows, dw_again});
      CHECK(dw_again.same_bits(dw));
      for (int64_t i = 0; i < used * kDim; ++i) REQUIRE(rows.get(i) == grad.get(i));
    }
}

TEST_CASE("routing has the same bits for any number of threads") {
  Random random;
  const Tensor experts = random_experts(random, 5000, 3, 7, false);
  const Tensor rows = random.normal(fb::DType::F32, {15000, 20}),
               weights = random.normal(fb::DType::F32, {5000, 3});
  check_same_bits_for_any_threads([&] {
    Index index = make_index(experts, 7);
    Tensor y(fb::DType::F32, {5000, 20});
    run("combine", fb::CombineT{}, {rows, weights, index.inverse, index.permutation, {}}, {y});
    std::vector<Tensor> out;
    out.push_back(std::move(index.permutation));
    out.push_back(std::move(index.inverse));
    out.push_back(std::move(y));
    return out;
  });
}

}  // namespace
}  // namespace moec::test
