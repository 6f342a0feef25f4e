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

/// Changes from the cheapest to the dearest: first those that train the same model on the same tokens a step,
/// then those that store numbers in fewer bits, then shorter sequences.
std::string cheapest_change(const fb::ModelT& model, const CompileOptions& options, uint64_t budget) {
  const fb::RecipeT& recipe = *model.recipe;
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

std::string shortage_text(const fb::ModelT& model, const CompileOptions& options, const Shortage& shortage) {
  std::vector<std::string> largest;
  for (const LiveBuffer& buffer : shortage.at_peak)
    if (largest.size() < kBuffersShown)
      largest.push_back(fmt::format("{} {} ({})", bytes_text(buffer.bytes), buffer.node, buffer.kernel));
  const std::string change = cheapest_change(model, options, shortage.budget);
  return fmt::format(
      "{} short of {}: needs {} at least, {} of it for weights, gradients and optimizer; live at the peak: "
      "{}{}; {}",
      bytes_text(shortage.least - shortage.budget), bytes_text(shortage.budget), bytes_text(shortage.least),
      bytes_text(shortage.persistent), fmt::join(largest, ", "),
      shortage.at_peak.size() > kBuffersShown
          ? fmt::format(" and {} more", shortage.at_peak.size() - kBuffersShown)
          : "",
      change.empty() ? "no single change makes it fit" : "would fit with " + change);
}

}  // namespace moec::tools
