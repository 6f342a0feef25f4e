#include "compiler/fit.h"

#include <algorithm>
#include <functional>

namespace moec {
namespace {

/// The largest n in [1, most] that fits when memory grows with n, 0 for none.
uint32_t largest(uint32_t most, const std::function<bool(uint32_t)>& fits) {
  uint32_t good = 0, bad = 1;
  for (; bad <= most && fits(bad); bad = bad > most / 2 && bad < most ? most : bad * 2) {
    good = bad;
    if (bad == most) return most;
  }
  while (bad - good > 1) {
    const uint32_t middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  return good;
}

}  // namespace

uint32_t largest_batch_size(const fb::ModelT& model, uint64_t budget, bool recompute,
                            const CompileOptions& options) {
  constexpr uint32_t kMost = 1u << 16;
  return largest(kMost, [&](uint32_t batch_size) {
    fb::ModelT changed(model);
    changed.recipe->batch_size = batch_size;
    return fastest_within(budget, recompute, changed, options).has_value();
  });
}

uint32_t largest_seq_len(const fb::ModelT& model, uint64_t budget, bool recompute,
                         const CompileOptions& options) {
  constexpr uint32_t kStep = 64;
  const auto fits = [&](uint32_t seq_len) {
    fb::ModelT changed(model);
    changed.recipe->seq_len = seq_len;
    return fastest_within(budget, recompute, changed, options).has_value();
  };
  if (fits(model.context)) return model.context;
  return kStep * largest(model.context / kStep, [&](uint32_t n) { return fits(n * kStep); });
}

}  // namespace moec
