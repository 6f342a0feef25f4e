#include "runtime/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/guard.h"

namespace moec::runtime {

Result<Sampler> Sampler::create(const SamplerOptions& options) {
  if (!(options.temperature >= 0) || std::isinf(options.temperature))
    return input_error(fmt::format("temperature {} is not a number >= 0", options.temperature));
  if (options.top_k < 0) return input_error(fmt::format("top-k {} is negative", options.top_k));
  if (!(options.top_p > 0 && options.top_p <= 1))
    return input_error(fmt::format("top-p {} is not in (0, 1]", options.top_p));
  return Sampler(options);
}

Result<int32_t> Sampler::sample(std::span<const float> logits) {
  return guarded("sampling", [&]() -> Result<int32_t> {
    const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < INFINITY); });
    if (bad != logits.end())
      return failure(fmt::format("the logit of token {} is {}", bad - logits.begin(), *bad));
    const auto best = std::max_element(logits.begin(), logits.end());
    if (best == logits.end() || std::isinf(*best)) return failure("no logit is finite");
    if (options_.temperature == 0) return static_cast<int32_t>(best - logits.begin());
    keep_likely(logits);
    double total = 0;
    for (const auto& [token, weight] : candidates_) total += weight;
    double left = uniform() * total;
    int32_t drawn = -1;
    for (const auto& [token, weight] : candidates_) {
      if (weight == 0) continue;
      drawn = token;  // the last one also takes what rounding leaves of the sum
      left -= weight;
      if (left < 0) break;
    }
    return drawn;
  });
}

void Sampler::keep_likely(std::span<const float> logits) {
  const double best = *std::max_element(logits.begin(), logits.end());
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i)
    candidates_.emplace_back(static_cast<int32_t>(i), std::exp((logits[i] - best) / options_.temperature));

  const bool narrowed = options_.top_k > 0 && static_cast<size_t>(options_.top_k) < candidates_.size();
  if (!narrowed && options_.top_p == 1) return;
  const size_t kept = narrowed ? static_cast<size_t>(options_.top_k) : candidates_.size();
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(kept),
                    candidates_.end(), [&](const auto& a, const auto& b) {
                      const float x = logits[static_cast<size_t>(a.first)];
                      const float y = logits[static_cast<size_t>(b.first)];
                      return x > y || (x == y && a.first < b.first);
                    });
  candidates_.resize(kept);

  double total = 0;
  for (const auto& [token, weight] : candidates_) total += weight;
  double sum = 0;
  const auto last = std::find_if(candidates_.begin(), candidates_.end(), [&](const auto& candidate) {
    sum += candidate.second;
    return sum >= options_.top_p * total;
  });
  if (last != candidates_.end()) candidates_.erase(last + 1, candidates_.end());
}

double Sampler::uniform() {
  // SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
  uint64_t z = state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

}  // namespace moec::runtime
