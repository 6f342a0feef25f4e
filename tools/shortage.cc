#include "tools/shortage.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>

#include "compiler/fit.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

constexpr size_t kBuffersShown = 3;

struct Change {
  std::string flags;
  std::function<void(fb::RecipeT&)> apply;
};

/// A smaller window of training tokens that leaves what is missing, 0 where there is none.
int64_t window_that_fits(const fb::ModelT& model, CompileOptions options, const Shortage& shortage) {
  constexpr uint64_t kTokenBytes = 4, kStep = 1024;
  const uint64_t short_of = shortage.least - shortage.budget;
  if (short_of >= shortage.window) return 0;
  const uint64_t tokens = (shortage.window - short_of) / kTokenBytes / kStep * kStep;
  if (tokens <= model.recipe->seq_len) return 0;
  options.window_tokens = static_cast<int64_t>(tokens);
  return fastest_within(shortage.budget, true, model, options) ? options.window_tokens : 0;
}

/// Changes from the cheapest to the dearest: first those that train the same model on the same tokens a step,
/// then those that store numbers in fewer bits, then shorter sequences.
std::string cheapest_change(const fb::ModelT& model, const CompileOptions& options,
                            const Shortage& shortage) {
  const fb::RecipeT& recipe = *model.recipe;
  const uint64_t budget = shortage.budget;
  if (const int64_t tokens = window_that_fits(model, options, shortage); tokens > 0)
    return fmt::format("--window-tokens {}", tokens);
  if (uint32_t batch = largest_batch_size(model, budget, true, options);
      batch > 0 && batch < recipe.batch_size) {
    const uint32_t sequences = recipe.batch_size * recipe.grad_accum;
    while (sequences % batch != 0) --batch;
    return fmt::format("--batch-size {} --grad-accum {}", batch, sequences / batch);
  }
  std::vector<Change> changes;
  if (recipe.dtype == fb::DType::BF16 && recipe.grad_dtype == fb::DType::F32)
    changes.push_back({"--grad-dtype same", [](fb::RecipeT& r) { r.grad_dtype = r.dtype; }});
  if (recipe.dtype == fb::DType::F32)
    changes.push_back({"--dtype bf16", [](fb::RecipeT& r) { r.dtype = fb::DType::BF16; }});
  for (const Change& change : changes) {
    fb::ModelT changed(model);
    change.apply(*changed.recipe);
    if (largest_batch_size(changed, budget, true, options) >= recipe.batch_size) return change.flags;
  }
  if (const uint32_t seq_len = largest_seq_len(model, budget, true, options);
      seq_len > 0 && seq_len < recipe.seq_len)
    return fmt::format("--seq-len {}", seq_len);
  return "";
}

}  // namespace

Error shortage_failure(const std::string& path, const fb::ModelT& model, const CompileOptions& options,
                       const Shortage& shortage) {
  std::vector<std::string> largest;
  for (const LiveBuffer& buffer : shortage.at_peak)
    if (largest.size() < kBuffersShown)
      largest.push_back(fmt::format("{} {} ({})", bytes_text(buffer.bytes), buffer.node, buffer.kernel));
  const std::string change = cheapest_change(model, options, shortage);
  return failure(fmt::format(
      "{}: {} short of {}: needs {} ({} B) at least, {} of it for weights, gradients and optimizer, {} for "
      "the "
      "window of training tokens; live at the peak: {}{}; {}",
      path, bytes_text(shortage.least - shortage.budget), bytes_text(shortage.budget),
      bytes_text(shortage.least), shortage.least, bytes_text(shortage.persistent - shortage.window),
      bytes_text(shortage.window), fmt::join(largest, ", "),
      shortage.at_peak.size() > kBuffersShown
          ? fmt::format(" and {} more", shortage.at_peak.size() - kBuffersShown)
          : "",
      change.empty() ? "no single change makes it fit" : "would fit with " + change));
}

}  // namespace moec::tools
