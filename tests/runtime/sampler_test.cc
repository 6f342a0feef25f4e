#include "runtime/sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace moec::runtime {
namespace {

constexpr int kDraws = 20000;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// How often each token is drawn.
std::vector<double> draw(const SamplerOptions& options, const std::vector<float>& logits) {
  auto sampler = Sampler::create(options);
  REQUIRE(sampler.ok());
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    const auto token = sampler->sample(logits);
    REQUIRE(token.ok());
    ++counts[static_cast<size_t>(*token)];
  }
  std::vector<double> frequencies;
  for (const int count : counts) frequencies.push_back(static_cast<double>(count) / kDraws);
  return frequencies;
}

/// Each frequency within five standard deviations of its probability.
void check_distribution(const std::vector<double>& found, const std::vector<double>& expected) {
  for (size_t i = 0; i < found.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(found[i] - expected[i]) <= 5 * std::sqrt(expected[i] * (1 - expected[i]) / kDraws));
  }
}

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 7);
  return logits;
}

TEST_CASE("samples follow the softmax") {
  check_distribution(draw({}, logs({0.1, 0.5, 0.15, 0.25})), {0.1, 0.5, 0.15, 0.25});
  // T = 1/2 squares the odds.
  check_distribution(draw({.temperature = 0.5}, logs({0.2, 0.4, 0.4})), {1. / 9, 4. / 9, 4. / 9});
  check_distribution(draw({}, {0, -kInfinity, 0}), {0.5, 0, 0.5});
}

TEST_CASE("top-k and top-p keep the likeliest tokens") {
  check_distribution(draw({.top_k = 2}, logs({0.1, 0.5, 0.15, 0.25})), {0, 2. / 3, 0, 1. / 3});
  check_distribution(draw({.top_k = 1}, {3, 3, 3}), {1, 0, 0});
  check_distribution(draw({.top_k = 9}, logs({0.5, 0.5})), {0.5, 0.5});
  check_distribution(draw({.top_p = 0.7}, logs({0.1, 0.5, 0.15, 0.25})), {0, 2. / 3, 0, 1. / 3});
  check_distribution(draw({.top_p = 0.01}, logs({0.1, 0.5, 0.4})), {0, 1, 0});
  // top-p counts the probabilities that top-k left: 0.5/0.75 is less than 0.7, so both stay.
  check_distribution(draw({.top_k = 2, .top_p = 0.7}, logs({0.25, 0.5, 0.25})), {1. / 3, 2. / 3, 0});
}

TEST_CASE("temperature 0 takes the largest logit, the first of equals") {
  check_distribution(draw({.temperature = 0}, {1, 5, 5, -kInfinity}), {0, 1, 0, 0});
  check_distribution(draw({.temperature = 1e-30}, {1, 5, 4}), {0, 1, 0});
}

TEST_CASE("a seed decides the draws") {
  const std::vector<float> logits(100, 0.f);
  std::vector<int32_t> draws[3];
  for (int run = 0; run < 3; ++run) {
    auto sampler = Sampler::create({.seed = run == 2 ? uint64_t{8} : uint64_t{7}});
    REQUIRE(sampler.ok());
    for (int i = 0; i < 50; ++i) draws[run].push_back(*sampler->sample(logits));
  }
  CHECK(draws[0] == draws[1]);
  CHECK(draws[0] != draws[2]);
}

TEST_CASE("bad options and logits are errors") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const SamplerOptions& bad : std::vector<SamplerOptions>{{.temperature = -1},
                                                               {.temperature = nan},
                                                               {.temperature = kInfinity},
                                                               {.top_k = -1},
                                                               {.top_p = 0},
                                                               {.top_p = 1.5},
                                                               {.top_p = nan}})
    CHECK(Sampler::create(bad).error().kind == ErrorKind::kInput);
  auto sampler = Sampler::create({});
  REQUIRE(sampler.ok());
  for (const std::vector<float>& bad :
       std::vector<std::vector<float>>{{}, {1, nan}, {1, kInfinity}, {-kInfinity, -kInfinity}})
    CHECK_FALSE(sampler->sample(bad).ok());
}

}  // namespace
}  // namespace moec::runtime
