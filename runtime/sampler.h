// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "runtime/status.h"

namespace moec::runtime {

struct SamplerOptions {
  double temperature = 1;  // 0: the largest logit
  int32_t top_k = 0;       // keep the k most likely tokens; 0 keeps all
  double top_p = 1;        // then keep the fewest of them whose probabilities sum to top_p
  uint64_t seed = 0;
};

/// Temperature, then top-k, then top-p, then a draw. Equal logits: the smaller token is the more likely one.
/// The same seed and logits give the same tokens on every machine.
class Sampler {
 public:
  /// An input error names the option that is out of range.
  static Result<Sampler> create(const SamplerOptions& options);

  /// A token in [0, logits.size()). Logits of -inf are never drawn; a NaN or +inf, or no finite logit, is a
  /// failure.
  Result<int32_t> sample(std::span<const float> logits);

 private:
  explicit Sampler(const SamplerOptions& options) : options_(options), state_(options.seed) {}

  /// Leaves in candidates_ the tokens to draw from, with weights relative to the most likely one.
  void keep_likely(std::span<const float> logits);
  /// Uniform in [0, 1).
  double uniform();

  SamplerOptions options_;
  uint64_t state_;
  std::vector<std::pair<int32_t, double>> candidates_;  // token, weight
};

}  // namespace moec::runtime
