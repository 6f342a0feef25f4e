#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

struct Case {
  int64_t batch, seq_len, vocabulary, dim;
};
/// One token; repeated tokens; more than one block of the vocabulary and of the columns, most tokens unused.
const std::vector<Case> kCases = {{1, 1, 1, 1}, {2, 40, 7, 33}, {3, 25, 1500, 150}};

TEST_CASE("embedding copies rows") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (const Case& c : kCases) {
      const Tensor tokens = random.integers({c.batch, c.seq_len}, static_cast<int32_t>(c.vocabulary));
      const Tensor weight = random.normal(dtype, {c.vocabulary, c.dim});
      Tensor y(dtype, {c.batch, c.seq_len, c.dim});
      run("embedding", fb::EmbeddingT{}, {tokens, weight}, {y});
      for (int64_t i = 0; i < y.elements(); ++i)
        REQUIRE(y.get(i) == weight.get(static_cast<int64_t>(tokens.get(i / c.dim)) * c.dim + i % c.dim));
    }
}

TEST_CASE("embedding_bwd sums the gradients of each token, over zeros or over what was there") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (fb::DType grad_dtype : {dtype, accumulator(dtype)})
      for (const Case& c : kCases) {
        const Tensor tokens = random.integers({c.batch, c.seq_len}, static_cast<int32_t>(c.vocabulary));
        const Tensor dy = random.normal(dtype, {c.batch, c.seq_len, c.dim});
        std::vector<double> expected(static_cast<size_t>(c.vocabulary * c.dim));
        for (int64_t i = 0; i < dy.elements(); ++i)
          expected[static_cast<size_t>(static_cast<int64_t>(tokens.get(i / c.dim)) * c.dim + i % c.dim)] +=
              dy.get(i);
        Tensor dweight(grad_dtype, {c.vocabulary, c.dim});
        run("embedding_bwd", fb::EmbeddingT{}, {tokens, dy, {}}, {dweight});
        CHECK(max_error(dweight, expected) < tolerance(dtype));

        Tensor sum = random.normal(grad_dtype, {c.vocabulary, c.dim});
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += sum.get(static_cast<int64_t>(i));
        run("embedding_bwd", fb::EmbeddingT{}, {tokens, dy, sum}, {sum});
        CHECK(max_error(sum, expected) < tolerance(dtype));
      }
}

TEST_CASE("a bf16 embedding gradient is rounded once, after the sum") {
  // 1 + 1000 * 2^-9: added one by one in bf16, every term would be lost.
  const Tensor tokens(fb::DType::I32, {1001});
  Tensor ids(fb::DType::I32, {1001}), dy(fb::DType::BF16, {1001, 1}), dweight(fb::DType::BF16, {1, 1});
  for (int64_t t = 0; t < 1001; ++t) {
    ids.set(t, 0);
    dy.set(t, t == 0 ? 1 : std::exp2(-9));
  }
  run("embedding_bwd", fb::EmbeddingT{}, {ids, dy, {}}, {dweight});
  CHECK(dweight.get(0) == doctest::Approx(1 + 1000 * std::exp2(-9)).epsilon(0.004));
}

TEST_CASE("position_embedding adds the row of the position; its derivative sums over the batch") {
  Random random;
  constexpr int64_t kContext = 50, kDim = 70;
  for (fb::DType dtype : kFloatTypes)
    for (auto [batch, seq_len] : {std::pair<int64_t, int64_t>{1, 1}, {3, 41}, {2, 50}}) {
      const std::vector<int64_t> shape = {batch, seq_len, kDim};
      Tensor x = random.normal(dtype, shape), y(dtype, shape);
      const Tensor weight = random.normal(dtype, {kContext, kDim});
      std::vector<double> expected = x.values(), dexpected(static_cast<size_t>(kContext * kDim));
      for (int64_t i = 0; i < x.elements(); ++i) {
        const int64_t at = i % (seq_len * kDim);
        dexpected[static_cast<size_t>(at)] += x.get(i);
        expected[static_cast<size_t>(i)] += weight.get(at);
      }
      run("position_embedding", fb::PositionEmbeddingT{}, {x, weight}, {y});
      CHECK(max_error(y, expected) < tolerance(dtype));

      Tensor dweight(accumulator(dtype), {kContext, kDim});
      run("position_embedding_bwd", fb::PositionEmbeddingT{}, {x, {}}, {dweight});
      CHECK(max_error(dweight, dexpected) < tolerance(dtype));
      for (double& value : dexpected) value *= 2;
      run("position_embedding_bwd", fb::PositionEmbeddingT{}, {x, dweight}, {dweight});
      CHECK(max_error(dweight, dexpected) < tolerance(dtype));
      run("position_embedding", fb::PositionEmbeddingT{}, {x, weight}, {x});
      CHECK(x.same_bits(y));
    }
}

TEST_CASE("embedding gradients have the same bits for any number of threads") {
  Random random;
  const Tensor tokens = random.integers({4, 500}, 1100), dy = random.normal(fb::DType::F32, {4, 500, 100});
  check_same_bits_for_any_threads([&] {
    std::vector<Tensor> out;
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{1100, 100});
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{500, 100});
    run("embedding_bwd", fb::EmbeddingT{}, {tokens, dy, {}}, {out[0]});
    run("position_embedding_bwd", fb::PositionEmbeddingT{}, {dy, {}}, {out[1]});
    return out;
  });
}

}  // namespace
}  // namespace moec::test
