#include "compiler/fit.h"

#include <algorithm>

namespace moec {
namespace {

/// The largest n in [1, most] that fits when memory grows with n, 0 for none. Steps away from a guess double.
uint32_t largest(uint32_t most, uint32_t guess, const std::function<bool(uint32_t)>& fits) {
  if (most == 0) return 0;
  uint64_t good = 0, bad = uint64_t{most} + 1, at = std::clamp(guess, 1u, most);
  for (uint64_t step = 1; bad - good > 1; step *= 2) {
    if (fits(static_cast<uint32_t>(at))) {
      good = at;
      if (bad <= most) break;
      at = std::min<uint64_t>(good + step, most);
    } else {
      bad = at;
      if (good > 0) break;
      at = bad > step ? bad - step : 1;
    }
  }
  while (bad - good > 1) {
    const uint64_t middle = good + (bad - good) / 2;
    (fits(static_cast<uint32_t>(middle)) ? good : bad) = middle;
  }
  return static_cast<uint32_t>(good);
}

}  // namespace

uint32_t largest_batch_size(const fb::ModelT& model, uint64_t budget, bool recompute,
                            const CompileOptions& options, uint32_t guess, const OnTry& on_try) {
  fb::ModelT changed(model);
  return largest(kMostBatchSize, guess, [&](uint32_t batch_size) {
    changed.recipe->batch_size = batch_size;
    if (on_try) on_try(*changed.recipe);
    return fastest_within(budget, recompute, changed, options).has_value();
  });
}

uint32_t largest_seq_len(const fb::ModelT& model, uint64_t budget, bool recompute,
                         const CompileOptions& options, uint32_t guess, const OnTry& on_try) {
  constexpr uint32_t kStep = 64;
  fb::ModelT changed(model);
  const auto fits = [&](uint32_t seq_len) {
    changed.recipe->seq_len = seq_len;
    if (on_try) on_try(*changed.recipe);
    return fastest_within(budget, recompute, changed, options).has_value();
  };
  if (fits(model.context)) return model.context;
  return kStep * largest(model.context / kStep, guess / kStep, [&](uint32_t n) { return fits(n * kStep); });
}

}  // namespace moec
