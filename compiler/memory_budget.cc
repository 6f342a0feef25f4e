#include "compiler/memory_budget.h"

#include <algorithm>
#include <map>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

#include "compiler/builder.h"
#include "compiler/memory_problem.h"
#include "compiler/op.h"
#include "planner/planner.h"

namespace moec {
namespace {

uint64_t aligned(uint64_t bytes) {
  return (bytes + planner::kAlignment - 1) / planner::kAlignment * planner::kAlignment;
}

/// Bytes of the arenas that outlive programs.
uint64_t persistent_bytes(const Storage& storage) {
  std::map<fb::ArenaKind, uint64_t> arenas;
  for (const fb::BufferT& buffer : storage.buffers)
    arenas[buffer.arena] = std::max(arenas[buffer.arena], aligned(buffer.offset + buffer.size));
  uint64_t bytes = 0;
  for (const auto& [kind, size] : arenas) bytes += size;
  return bytes;
}

uint64_t window_bytes(const Storage& storage) {
  const auto window = std::ranges::find(storage.slots, kWindowName, &StorageSlot::name);
  return window == storage.slots.end() ? 0 : static_cast<uint64_t>(window->type.bytes());
}

/// Bytes of the activation arena that the programs besides accumulate need.
uint64_t other_activation_bytes(const Programs& programs) {
  uint64_t bytes = 0;
  for (const Graph* graph : {&programs.init, &programs.apply, &programs.evaluate, &programs.prefill})
    bytes = std::max(bytes, activation_bytes(*graph));
  return bytes;
}

/// What is live at the first of the steps where most bytes are, the largest first.
std::vector<LiveBuffer> live_at_peak(const Graph& graph) {
  const planner::Placement placement = planner::plan_memory(memory_problem(graph));
  std::vector<uint64_t> live(graph.nodes().size(), 0);
  for (const auto& [size, first, last] : placement.buffers)
    for (uint32_t step = first; step <= last; ++step) live[step] += size;
  const auto peak = static_cast<size_t>(std::ranges::max_element(live) - live.begin());
  std::vector<LiveBuffer> buffers;
  for (const auto& [size, first, last] : placement.buffers)
    if (first <= peak && peak <= last)
      buffers.push_back({graph.nodes()[first].label, std::string(graph.nodes()[first].def->key), size});
  std::ranges::stable_sort(buffers, std::ranges::greater{}, &LiveBuffer::bytes);
  return buffers;
}

}  // namespace

Ways::Ways(const Programs& programs, const fb::RecipeT& recipe, const CostModel& costs)
    : programs_(programs),
      costs_(costs),
      kept_(keep_activations(programs.accumulate)),
      micro_batches_(recipe.grad_accum),
      persistent_(persistent_bytes(programs.storage)),
      others_(other_activation_bytes(programs)),
      kept_seconds_(micro_batches_ * total_seconds(kept_, costs) + total_seconds(programs.apply, costs)) {}

Way Ways::without_budget() const {
  return make(programs_.accumulate,
              total_seconds(programs_.accumulate, costs_) - total_seconds(kept_, costs_));
}

void Ways::visit(uint64_t budget, const std::function<bool(Way)>& visit) const {
  const Recompute& recompute = this->recompute();
  for (const planner::Alternative& alternative : recompute.alternatives())
    if (persistent_ + std::max(alternative.live_bytes, others_) <= budget &&
        visit(make(recompute.apply(alternative), alternative.extra_seconds)))
      return;
}

std::optional<Way> Ways::fastest_within(uint64_t budget) const {
  std::optional<Way> found = keep_everything();
  if (found->point.bytes <= budget) return found;
  found.reset();
  visit(budget, [&](Way way) {
    if (way.point.bytes <= budget) found = std::move(way);
    return found.has_value();
  });
  return found;
}

Way Ways::least() const {
  const Recompute& recompute = this->recompute();
  std::optional<Way> least;
  for (const planner::Alternative& alternative : recompute.alternatives() | std::views::reverse) {
    // From here on more is live, which no arena is smaller than.
    if (least && persistent_ + std::max(alternative.live_bytes, others_) > least->point.bytes) break;
    Way way = make(recompute.apply(alternative), alternative.extra_seconds);
    if (!least || way.point.bytes <= least->point.bytes) least = std::move(way);
  }
  return *std::move(least);
}

Shortage Ways::shortage(uint64_t budget) const {
  const Way least = this->least();
  return {.budget = budget,
          .least = least.point.bytes,
          .persistent = persistent_,
          .window = window_bytes(programs_.storage),
          .at_peak = live_at_peak(least.accumulate)};
}

const Recompute& Ways::recompute() const {
  if (!recompute_) recompute_.emplace(programs_.accumulate, costs_);
  return *recompute_;
}

Way Ways::make(Graph accumulate, double extra_seconds) const {
  FrontierPoint point;
  point.bytes = persistent_ + std::max(activation_bytes(accumulate), others_);
  point.recompute_seconds = micro_batches_ * extra_seconds;
  point.seconds = kept_seconds_ + point.recompute_seconds;
  point.recomputed = static_cast<int>(std::ranges::count(accumulate.nodes(), true, &Node::recompute));
  point.remade = static_cast<int>(remade_activations(accumulate).size());
  return {std::move(accumulate), point};
}

}  // namespace moec
