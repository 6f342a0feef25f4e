#include <set>

#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

fb::RouterT router_attrs(int64_t k, bool renormalise) {
  fb::RouterT attrs;
  attrs.top_k = static_cast<uint32_t>(k);
  attrs.renormalise = renormalise;
  return attrs;
}

struct Routed {
  Tensor weights, experts, probs;
};

Routed route(const Tensor& logits, int64_t k, bool renormalise) {
  const int64_t rows = logits.view().rows(), n = logits.view().cols();
  const fb::DType dtype = logits.view().dtype;
  Routed out{Tensor(dtype, {rows, k}), Tensor(fb::DType::I32, {rows, k}), Tensor(dtype, {rows, n})};
  run("router", router_attrs(k, renormalise), {logits}, {out.weights, out.experts, out.probs});
  return out;
}

std::vector<double> softmax_row(const Tensor& logits, int64_t row) {
  const int64_t n = logits.view().cols();
  std::vector<double> p;
  double sum = 0, max = -1e300;
  for (int64_t e = 0; e < n; ++e) max = std::max(max, logits.get(row * n + e));
  for (int64_t e = 0; e < n; ++e) p.push_back(std::exp(logits.get(row * n + e) - max));
  for (double v : p) sum += v;
  for (double& v : p) v /= sum;
  return p;
}

const std::vector<fb::DType> kRouterTypes = {fb::DType::F32, fb::DType::F64};

TEST_CASE("router takes the k most probable experts") {
  Random random;
  for (fb::DType dtype : kRouterTypes)
    for (bool renormalise : {false, true})
      for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {8, 1}, {8, 2}, {16, 4}, {5, 5}, {130, 7}}) {
        Tensor logits = random.normal(dtype, {61, n}, 2);
        const Routed out = route(logits, k, renormalise);
        std::vector<double> probs, weights, experts;
        for (int64_t row = 0; row < 61; ++row) {
          const std::vector<double> p = softmax_row(logits, row);
          std::vector<size_t> order(p.size());
          for (size_t e = 0; e < order.size(); ++e) order[e] = e;
          std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
          double chosen = 0;
          for (size_t j = 0; j < static_cast<size_t>(k); ++j) chosen += p[order[j]];
          for (size_t j = 0; j < static_cast<size_t>(k); ++j) {
            experts.push_back(static_cast<double>(order[j]));
            weights.push_back(renormalise ? p[order[j]] / chosen : p[order[j]]);
          }
          probs.insert(probs.end(), p.begin(), p.end());
        }
        CHECK(out.experts.values() == experts);
        CHECK(max_error(out.weights, weights) < tolerance(dtype));
        CHECK(max_error(out.probs, probs) < tolerance(dtype));

        Routed in_place{Tensor(dtype, {61, k}), Tensor(fb::DType::I32, {61, k}), Tensor(dtype, {1})};
        run("router", router_attrs(k, renormalise), {logits}, {in_place.weights, in_place.experts, logits});
        CHECK(logits.same_bits(out.probs));
        CHECK(in_place.weights.same_bits(out.weights));
        CHECK(in_place.experts.same_bits(out.experts));
      }
}

TEST_CASE("ties go to the smaller index") {
  const Tensor logits(fb::DType::F32, {3, 4}, {0, 0, 0, 0, 1, 2, 1, 2, 5, -1e30, -1e30, -1e30});
  const Routed out = route(logits, 3, true);
  CHECK(out.experts.values() == std::vector<double>{0, 1, 2, 1, 3, 0, 0, 1, 2});
  CHECK(out.weights.get(0) == doctest::Approx(1.0 / 3));
}

TEST_CASE("rows of extreme, infinite or NaN logits still choose different experts") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const Tensor logits(fb::DType::F32, {3, 4},
                      {-inf, 3e38, -3e38, -inf, nan, nan, nan, nan, -inf, -inf, -inf, inf});
  const Routed out = route(logits, 4, true);
  for (int64_t row = 0; row < 3; ++row) {
    std::set<double> chosen;
    for (int64_t j = 0; j < 4; ++j) chosen.insert(out.experts.get(row * 4 + j));
    CHECK(chosen == std::set<double>{0, 1, 2, 3});
  }
  CHECK(out.experts.get(0) == 1);
  CHECK(out.probs.get(1) == 1);
}

/// sum(dweights * weights) + sum(dprobs * probs) with the experts held fixed, in f64: what router_bwd
/// derives.
double objective(const std::vector<double>& logits, const std::vector<int64_t>& experts, bool renormalise,
                 const std::vector<double>& dweights, const std::vector<double>& dprobs) {
  double sum = 0, chosen = 0, result = 0;
  for (double l : logits) sum += std::exp(l);
  for (int64_t e : experts) chosen += std::exp(logits[static_cast<size_t>(e)]) / sum;
  for (size_t j = 0; j < experts.size(); ++j)
    result +=
        dweights[j] * std::exp(logits[static_cast<size_t>(experts[j])]) / sum / (renormalise ? chosen : 1);
  for (size_t e = 0; e < logits.size(); ++e) result += dprobs[e] * std::exp(logits[e]) / sum;
  return result;
}

TEST_CASE("router_bwd is the derivative of weights and probabilities") {
  Random random;
  constexpr int64_t kRows = 23;
  for (bool renormalise : {false, true})
    for (auto [with_weights, with_probs] : {std::pair{true, true}, {true, false}, {false, true}})
      for (auto [n, k] : {std::pair<int64_t, int64_t>{8, 1}, {8, 2}, {5, 5}}) {
        const fb::DType dtype = fb::DType::F64;
        const Tensor logits = random.normal(dtype, {kRows, n}), dweights = random.normal(dtype, {kRows, k});
        Tensor dprobs = random.normal(dtype, {kRows, n});
        Routed out = route(logits, k, renormalise);
        std::vector<double> expected;
        for (int64_t row = 0; row < kRows; ++row) {
          std::vector<double> l, dw, dp;
          std::vector<int64_t> experts;
          for (int64_t e = 0; e < n; ++e) l.push_back(logits.get(row * n + e));
          for (int64_t e = 0; e < n; ++e) dp.push_back(with_probs ? dprobs.get(row * n + e) : 0);
          for (int64_t j = 0; j < k; ++j) {
            experts.push_back(static_cast<int64_t>(out.experts.get(row * k + j)));
            dw.push_back(with_weights ? dweights.get(row * k + j) : 0);
          }
          for (size_t e = 0; e < l.size(); ++e) {
            constexpr double kStep = 1e-5;
            const double at = l[e];
            l[e] = at + kStep;
            const double up = objective(l, experts, renormalise, dw, dp);
            l[e] = at - kStep;
            const double down = objective(l, experts, renormalise, dw, dp);
            l[e] = at;
            expected.push_back((up - down) / (2 * kStep));
          }
        }
        const TensorView dw_view = with_weights ? dweights.view() : TensorView{};
        const TensorView dp_view = with_probs ? dprobs.view() : TensorView{};
        Tensor dlogits(dtype, {kRows, n});
        run("router_bwd", router_attrs(k, renormalise),
            {dw_view, dp_view, out.probs, out.experts, out.weights}, {dlogits});
        for (int64_t i = 0; i < dlogits.elements(); ++i)
          REQUIRE(std::abs(dlogits.get(i) - expected[static_cast<size_t>(i)]) < 1e-9);

        Tensor probs = out.probs.copy();
        run("router_bwd", router_attrs(k, renormalise), {dw_view, dp_view, probs, out.experts, out.weights},
            {probs});
        CHECK(probs.same_bits(dlogits));
        if (with_probs) {
          run("router_bwd", router_attrs(k, renormalise),
              {dw_view, dprobs, out.probs, out.experts, out.weights}, {dprobs});
          CHECK(dprobs.same_bits(dlogits));
        }
      }
}

TEST_CASE("the weight gradient of one renormalised expert is exactly zero") {
  Random random;
  const Tensor logits = random.normal(fb::DType::F32, {50, 8}),
               dweights = random.normal(fb::DType::F32, {50, 1});
  const Routed out = route(logits, 1, true);
  Tensor dlogits(fb::DType::F32, {50, 8});
  run("router_bwd", router_attrs(1, true), {dweights, {}, out.probs, out.experts, out.weights}, {dlogits});
  for (double value : dlogits.values()) REQUIRE(value == 0);
}

}  // namespace
}  // namespace moec::test
