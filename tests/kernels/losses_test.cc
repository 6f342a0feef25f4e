#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

double log_sum_exp(const Tensor& x, int64_t row) {
  const int64_t n = x.view().cols();
  double max = x.get(row * n), sum = 0;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, x.get(row * n + i));
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x.get(row * n + i) - max);
  return max + std::log(sum);
}

/// Targets, of which every `ignored`-th is -1; 0 ignores none.
Tensor random_targets(Random& random, int64_t rows, int64_t vocabulary, int64_t ignored) {
  Tensor targets = random.integers({rows}, static_cast<int32_t>(vocabulary));
  for (int64_t i = 0; ignored > 0 && i < rows; i += ignored) targets.set(i, -1);
  return targets;
}

Tensor scalar(fb::DType dtype, double value) { return Tensor(dtype, {}, {value}); }

struct CrossEntropy {
  Tensor loss, lse;
};
CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets) {
  const fb::DType acc = accumulator(logits.view().dtype);
  CrossEntropy out{Tensor(acc, {}), Tensor(acc, {logits.view().rows()})};
  run("cross_entropy", fb::CrossEntropyT{}, {logits, targets}, {out.loss, out.lse});
  return out;
}

TEST_CASE("cross_entropy and its derivative") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (auto [rows, n] : {std::pair<int64_t, int64_t>{1, 1}, {5, 17}, {70, 3001}})
      for (int64_t ignored : {0, 3}) {
        if (rows == 1 && ignored) continue;
        const fb::DType acc = accumulator(dtype);
        Tensor logits = random.normal(dtype, {rows, n}, 4);
        const Tensor targets = random_targets(random, rows, n, ignored);
        double loss = 0, valid = 0;
        std::vector<double> lse, dlogits;
        for (int64_t row = 0; row < rows; ++row) valid += targets.get(row) >= 0;
        for (int64_t row = 0; row < rows; ++row) {
          const auto target = static_cast<int64_t>(targets.get(row));
          lse.push_back(log_sum_exp(logits, row));
          if (target >= 0) loss += (lse.back() - logits.get(row * n + target)) / valid;
          for (int64_t i = 0; i < n; ++i) {
            const double p = std::exp(logits.get(row * n + i) - lse.back());
            dlogits.push_back(target < 0 ? 0 : 0.5 * (p - (i == target)) / valid);
          }
        }
        const CrossEntropy out = cross_entropy(logits, targets);
        CHECK(std::abs(out.loss.get(0) - loss) < tolerance(acc) * (1 + loss));
        CHECK(max_error(out.lse, lse) < tolerance(acc));
        if (n == 1) continue;  // all gradients are zero: nothing to scale an error with

        Tensor dx(dtype, {rows, n});
        const Tensor dloss = scalar(acc, 0.5);
        run("cross_entropy_bwd", fb::CrossEntropyT{}, {dloss, logits, targets, out.lse}, {dx});
        CHECK(max_error(dx, dlogits) < tolerance(dtype));
        run("cross_entropy_bwd", fb::CrossEntropyT{}, {dloss, logits, targets, out.lse}, {logits});
        CHECK(logits.same_bits(dx));
      }
}

TEST_CASE("cross_entropy without a valid target is zero, and so is its gradient") {
  const Tensor logits(fb::DType::F32, {3, 4}),
      targets(fb::DType::I32, {3}, {-1, -1, -100});  // logits are NaN
  const CrossEntropy out = cross_entropy(logits, targets);
  CHECK(out.loss.get(0) == 0);
  Tensor dx(fb::DType::F32, {3, 4});
  run("cross_entropy_bwd", fb::CrossEntropyT{}, {scalar(fb::DType::F32, 1), logits, targets, out.lse}, {dx});
  CHECK(dx.values() == std::vector<double>(12, 0));
}

/// What linear_cross_entropy makes, in three steps that hold all logits.
struct Head {
  Tensor loss, dx, dweight;
};
Head separate_head(const Tensor& x, const Tensor& weight, const Tensor& targets, double dloss) {
  const TensorView &xv = x.view(), &wv = weight.view();
  const fb::DType type = xv.dtype, acc = accumulator(type);
  Tensor logits(type, {xv.rows(), wv.rows()});
  run("linear", fb::LinearT{}, {x, weight, {}}, {logits});
  CrossEntropy out = cross_entropy(logits, targets);
  run("cross_entropy_bwd", fb::CrossEntropyT{}, {scalar(acc, dloss), logits, targets, out.lse}, {logits});
  Head head{std::move(out.loss), Tensor(type, {xv.rows(), xv.cols()}), Tensor(acc, {wv.rows(), wv.cols()})};
  run("linear_bwd_input", fb::LinearT{}, {logits, weight}, {head.dx});
  run("linear_bwd_weight", fb::LinearT{}, {logits, x, {}}, {head.dweight});
  return head;
}

TEST_CASE("linear_cross_entropy equals its three steps, in one chunk of rows or several, in place or not") {
  Random random;
  for (const fb::DType dtype : {fb::DType::F32, fb::DType::F64, fb::DType::BF16})
    for (const int64_t rows : {1, 37, 8200, 16400}) {
      const fb::DType acc = accumulator(dtype);
      constexpr int64_t kIn = 6, kOut = 11;
      const Tensor x = random.normal(dtype, {rows, kIn}), weight = random.normal(dtype, {kOut, kIn});
      const Tensor targets = random_targets(random, rows, kOut, rows == 1 ? 0 : 5);
      const Head separate = separate_head(x, weight, targets, 0.5);
      const Tensor dloss = scalar(acc, 0.5);
      Tensor loss(acc, {}), only_loss(acc, {});
      run("linear_cross_entropy", fb::CrossEntropyT{}, {x, weight, targets, {}, {}}, {only_loss, {}, {}});
      for (const fb::DType grad : {acc, dtype})
        for (const bool accumulate : {false, true}) {
          Tensor dx(dtype, {rows, kIn}), dweight(grad, {kOut, kIn});
          std::vector<double> expected = separate.dweight.values();
          if (accumulate)
            for (int64_t i = 0; i < dweight.elements(); ++i) {
              dweight.set(i, 0.25 * static_cast<double>(i));
              expected[static_cast<size_t>(i)] += dweight.get(i);
            }
          const TensorView previous = accumulate ? dweight.view() : TensorView{};
          run("linear_cross_entropy", fb::CrossEntropyT{}, {x, weight, targets, dloss, previous},
              {loss, dx, dweight});
          CHECK(std::abs(loss.get(0) - separate.loss.get(0)) < tolerance(dtype) * separate.loss.get(0));
          CHECK(loss.same_bits(only_loss));
          CHECK(max_error(dx, separate.dx.values()) < tolerance(dtype));
          CHECK(max_error(dweight, expected) < tolerance(dtype));
        }
    }
}

TEST_CASE("cross_entropy of extreme logits") {
  const double inf = std::numeric_limits<double>::infinity();
  for (fb::DType dtype : kFloatTypes) {
    const Tensor logits(dtype, {3, 4}, {1e4, 0, 0, -1e4, 7, 7, 7, 7, -inf, 3, -inf, 3});
    const Tensor targets(fb::DType::I32, {3}, {0, 2, 1});
    const CrossEntropy out = cross_entropy(logits, targets);
    CHECK(out.loss.get(0) == doctest::Approx((std::log(4.0) + std::log(2.0)) / 3));
    Tensor dx(dtype, {3, 4});
    const Tensor dloss = scalar(accumulator(dtype), 3);
    run("cross_entropy_bwd", fb::CrossEntropyT{}, {dloss, logits, targets, out.lse}, {dx});
    CHECK(max_error(dx, {0, 0, 0, 0, 0.25, 0.25, -0.75, 0.25, 0, -0.5, 0, 0.5}) < tolerance(dtype));
  }
}

/// Offsets with the counts given.
Tensor offsets_of(const std::vector<double>& counts) {
  std::vector<double> offsets = {0};
  for (double count : counts) offsets.push_back(offsets.back() + count);
  return Tensor(fb::DType::I32, {static_cast<int64_t>(offsets.size())}, offsets);
}

TEST_CASE("aux_loss and its derivative, in both forms") {
  Random random;
  const std::vector<double> counts = {10, 0, 150, 44};  // 102 tokens, 2 experts each, one expert empty
  constexpr int64_t kTokens = 102, kExperts = 4;
  for (fb::DType dtype : {fb::DType::F32, fb::DType::F64})
    for (fb::AuxLossForm form : {fb::AuxLossForm::PerAssignment, fb::AuxLossForm::PerToken}) {
      fb::AuxLossT attrs;
      attrs.coefficient = 0.25;
      attrs.form = form;
      Tensor probs = random.normal(dtype, {kTokens, kExperts}, 0.1, 0.5);
      const Tensor offsets = offsets_of(counts), dloss = scalar(dtype, 3);
      const double denominator = form == fb::AuxLossForm::PerToken ? kTokens : 2 * kTokens;
      double expected = 0;
      std::vector<double> dprobs;
      for (int64_t i = 0; i < probs.elements(); ++i) {
        const double slope =
            0.25 * kExperts * counts[static_cast<size_t>(i % kExperts)] / denominator / kTokens;
        expected += slope * probs.get(i);
        dprobs.push_back(3 * slope);
      }
      Tensor loss(dtype, {}), dx(dtype, {kTokens, kExperts});
      run("aux_loss", attrs, {probs, offsets}, {loss});
      CHECK(loss.get(0) == doctest::Approx(expected).epsilon(tolerance(dtype)));
      run("aux_loss_bwd", attrs, {dloss, probs, offsets}, {dx});
      CHECK(max_error(dx, dprobs) < tolerance(dtype));
      run("aux_loss_bwd", attrs, {dloss, probs, offsets}, {probs});
      CHECK(probs.same_bits(dx));
    }
}

TEST_CASE("aux_loss of a balanced router is its coefficient, times k per token") {
  fb::AuxLossT attrs;
  const Tensor probs(fb::DType::F64, {8, 4}, std::vector<double>(32, 0.25)),
      offsets = offsets_of({4, 4, 4, 4});
  Tensor loss(fb::DType::F64, {});
  run("aux_loss", attrs, {probs, offsets}, {loss});
  CHECK(loss.get(0) == doctest::Approx(0.01));
  attrs.form = fb::AuxLossForm::PerToken;
  run("aux_loss", attrs, {probs, offsets}, {loss});
  CHECK(loss.get(0) == doctest::Approx(0.02));
}

TEST_CASE("router_z_loss and its derivative") {
  Random random;
  for (fb::DType dtype : {fb::DType::F32, fb::DType::F64})
    for (auto [rows, n] : {std::pair<int64_t, int64_t>{1, 1}, {301, 16}}) {
      fb::RouterZLossT attrs;
      attrs.coefficient = 0.5;
      Tensor logits = random.normal(dtype, {rows, n}, 3, 1);
      double expected = 0;
      std::vector<double> dlogits;
      for (int64_t row = 0; row < rows; ++row) {
        const double lse = log_sum_exp(logits, row);
        expected += 0.5 * lse * lse / static_cast<double>(rows);
        for (int64_t i = 0; i < n; ++i)
          dlogits.push_back(2 * lse * std::exp(logits.get(row * n + i) - lse) / static_cast<double>(rows));
      }
      Tensor loss(dtype, {}), dx(dtype, {rows, n});
      run("router_z_loss", attrs, {logits}, {loss});
      CHECK(loss.get(0) == doctest::Approx(expected).epsilon(tolerance(dtype)));
      run("router_z_loss_bwd", attrs, {scalar(dtype, 2), logits}, {dx});
      CHECK(max_error(dx, dlogits) < tolerance(dtype));
      run("router_z_loss_bwd", attrs, {scalar(dtype, 2), logits}, {logits});
      CHECK(logits.same_bits(dx));
    }
}

TEST_CASE("losses have the same bits for any number of threads") {
  Random random;
  const Tensor logits = random.normal(fb::DType::F32, {777, 130}),
               targets = random_targets(random, 777, 130, 5);
  const Tensor offsets = offsets_of(std::vector<double>(130, 3));
  check_same_bits_for_any_threads([&] {
    std::vector<Tensor> out;
    CrossEntropy ce = cross_entropy(logits, targets);
    out.push_back(std::move(ce.loss));
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{});
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{});
    run("aux_loss", fb::AuxLossT{}, {logits, offsets}, {out[1]});
    run("router_z_loss", fb::RouterZLossT{}, {logits}, {out[2]});
    return out;
  });
}

}  // namespace
}  // namespace moec::test
