#include "planner/place.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

#include "planner/heuristics.h"

namespace moec::planner {
namespace {

/// No machine has more memory; sums below this do not wrap.
constexpr uint64_t kMostBytes = uint64_t{1} << 62;

/// The buffers with sizes rounded up and steps renumbered so that only those remain at which a buffer starts;
/// the same pairs are live together.
std::vector<Lifetime> normalised(const std::vector<Lifetime>& buffers, uint64_t alignment) {
  std::vector<uint32_t> starts;
  for (const Lifetime& buffer : buffers) starts.push_back(buffer.first);
  std::ranges::sort(starts);
  starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
  const auto rank = [&](uint32_t step) {
    return static_cast<uint32_t>(std::ranges::upper_bound(starts, step) - starts.begin()) - 1;
  };
  std::vector<Lifetime> blocks;
  uint64_t total = 0;
  for (const auto& [size, first, last] : buffers) {
    if (first > last) throw std::invalid_argument("a buffer ends before it starts");
    if (size > kMostBytes - alignment) throw std::invalid_argument("a buffer of more than 2^62 bytes");
    const uint64_t rounded = (size + alignment - 1) / alignment * alignment;
    if (rounded > kMostBytes - total) throw std::invalid_argument("buffers of more than 2^62 bytes");
    total += rounded;
    blocks.push_back({.size = rounded, .first = rank(first), .last = rank(last)});
  }
  return blocks;
}

/// Live bytes at each step.
std::vector<uint64_t> live_bytes(const std::vector<Lifetime>& blocks) {
  uint32_t last = 0;
  for (const Lifetime& block : blocks) last = std::max(last, block.last);
  std::vector<uint64_t> live(size_t{last} + 2, 0);
  for (const Lifetime& block : blocks) {
    live[block.first] += block.size;
    live[size_t{block.last} + 1] -= block.size;
  }
  std::partial_sum(live.begin(), live.end(), live.begin());
  return live;
}

/// Maximum over ranges of a fixed sequence.
class RangeMax {
 public:
  explicit RangeMax(std::vector<uint64_t> values) : levels_{std::move(values)} {
    for (size_t width = 1; 2 * width <= levels_[0].size(); width *= 2) {
      const std::vector<uint64_t>& below = levels_.back();
      std::vector<uint64_t> level(levels_[0].size() - 2 * width + 1);
      for (size_t i = 0; i < level.size(); ++i) level[i] = std::max(below[i], below[i + width]);
      levels_.push_back(std::move(level));
    }
  }
  uint64_t operator()(size_t first, size_t last) const {
    const auto level = static_cast<size_t>(std::bit_width(last - first + 1)) - 1;
    return std::max(levels_[level][first], levels_[level][last + 1 - (size_t{1} << level)]);
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;  // level l: maxima of 2^l values
};

/// A block as the greedy orders see it.
struct Traits {
  double size = 0, length = 0, area = 0, earliness = 0;
  double contention = 0;  // the most bytes live at one of its steps
};

/// Blocks with the larger first key come first; the other keys break ties.
struct GreedyOrder {
  const char* name;
  std::array<double Traits::*, 3> keys;

  std::array<double, 3> operator()(const Traits& traits) const {
    return {traits.*keys[0], traits.*keys[1], traits.*keys[2]};
  }
};

constexpr GreedyOrder kGreedyOrders[] = {
    {"by lifetime", {&Traits::length, &Traits::size, &Traits::earliness}},
    {"by size", {&Traits::size, &Traits::length, &Traits::earliness}},
    {"by area", {&Traits::area, &Traits::size, &Traits::earliness}},
    {"by contention, size", {&Traits::contention, &Traits::size, &Traits::length}},
    {"by contention, lifetime", {&Traits::contention, &Traits::length, &Traits::size}},
    {"by contention, area", {&Traits::contention, &Traits::area, &Traits::size}},
    {"by start", {&Traits::earliness, &Traits::length, &Traits::size}},
};

/// Tries one way after the other and keeps the lowest layout.
class Contest {
 public:
  /// `blocks` are the normalised `buffers`.
  Contest(const std::vector<Lifetime>& buffers, const std::vector<Lifetime>& blocks, Budget budget)
      : buffers_(buffers),
        blocks_(blocks),
        lower_bound_(std::ranges::max(live_bytes(blocks))),
        budget_(budget) {}

  void run() {
    try_in_time();
    try_orders();
    Layout layout;
    if (!good_enough() && lowest_stretch(blocks_, budget_, layout)) keep(std::move(layout), "lowest stretch");
    search_at(lower_bound_);
    reorder(budget_.left / 2);
    bisect();
  }

  Layout best{.offsets = {}, .peak = std::numeric_limits<uint64_t>::max()};
  std::string heuristic;

 private:
  /// Within 1/1024 of what no placement can beat.
  bool good_enough() const { return best.peak <= lower_bound_ + lower_bound_ / 1024; }

  bool keep(Layout layout, const char* name) {
    if (layout.peak >= best.peak) return false;
    best = std::move(layout);
    heuristic = name;
    return true;
  }

  /// The allocator in time order, forwards and backwards.
  void try_in_time() {
    keep(best_fit_in_time(blocks_), "best fit in time");
    std::vector<Lifetime> mirrored = blocks_;
    for (Lifetime& block : mirrored) {
      constexpr uint32_t kEnd = std::numeric_limits<uint32_t>::max();
      block = {.size = block.size, .first = kEnd - block.last, .last = kEnd - block.first};
    }
    keep(best_fit_in_time(mirrored), "best fit in reversed time");
  }

  void try_orders() {
    const RangeMax contention(live_bytes(blocks_));
    std::vector<Traits> traits;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const Lifetime& block = blocks_[i];
      const double size = static_cast<double>(block.size);
      const double length = buffers_[i].last - buffers_[i].first + 1.0;
      traits.push_back({.size = size,
                        .length = length,
                        .area = size * length,
                        .earliness = -static_cast<double>(block.first),
                        .contention = static_cast<double>(contention(block.first, block.last))});
    }
    for (const GreedyOrder& greedy : kGreedyOrders) {
      if (best.peak == lower_bound_ || budget_.spent()) return;
      std::vector<int> order(blocks_.size());
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, std::greater{}, [&](int i) { return greedy(traits[i]); });
      Layout layout;
      const size_t placed = first_fit(blocks_, order, best.peak - 1, budget_, layout);
      if (placed == order.size() && keep(std::move(layout), greedy.name)) furthest_ = order.size();
      if (placed >= furthest_) {
        furthest_ = placed;
        order_ = std::move(order);
      }
    }
  }

  /// Spends up to a third of the budget on a layout within `capacity`; whether there is none or none was
  /// found.
  bool search_at(uint64_t capacity) {
    if (good_enough() || !search_is_affordable()) return false;
    Budget share{.left = budget_.left / 3};
    budget_.left -= share.left;
    SearchResult found = search(blocks_, capacity, share);
    budget_.left += share.left;
    return found.verdict == Verdict::kPlaced && keep(std::move(found.layout), "search");
  }

  /// Searches between what failed and the best.
  void bisect() {
    for (uint64_t least = lower_bound_ + 1; least < best.peak && !good_enough() && search_is_affordable();) {
      const uint64_t middle = least + (best.peak - least) / 2;
      if (!search_at(middle)) least = middle + 1;
    }
  }

  /// Whether the budget allows for some descents, each with as many nodes as blocks.
  bool search_is_affordable() const {
    if (blocks_.size() > kMostSearchedBlocks) return false;
    constexpr uint64_t kDescents = 4;
    uint64_t sections = 0;
    for (const Lifetime& block : blocks_) sections += block.last - block.first + 1;
    return sections < budget_.left / kDescents / blocks_.size();
  }

  /// Local search over orders: whichever block broke the limit is moved to an earlier place, drawn at random
  /// from a fixed seed, until the layout is good or the budget is spent.
  void reorder(uint64_t reserve) {
    std::minstd_rand draw(1);
    Layout layout;
    while (!order_.empty() && !good_enough() && budget_.left > reserve) {
      const size_t placed = first_fit(blocks_, order_, best.peak - 1, budget_, layout);
      if (placed == order_.size()) {
        keep(layout, "reordered");
        continue;
      }
      if (placed == 0) return;
      const auto broke = order_.begin() + static_cast<ptrdiff_t>(placed);
      const auto to = order_.begin() + static_cast<ptrdiff_t>(draw() % placed);
      std::rotate(to, broke, broke + 1);
    }
  }

  const std::vector<Lifetime>& buffers_;
  const std::vector<Lifetime>& blocks_;
  uint64_t lower_bound_;
  Budget budget_;
  std::vector<int> order_;  // where the local search starts: the order that came furthest
  size_t furthest_ = 0;
};

}  // namespace

uint64_t live_bytes_lower_bound(const std::vector<Lifetime>& buffers, uint64_t alignment) {
  return std::ranges::max(live_bytes(normalised(buffers, alignment)));
}

Offsets place(const std::vector<Lifetime>& buffers, uint64_t alignment) {
  if (buffers.empty()) return {};
  const std::vector<Lifetime> blocks = normalised(buffers, alignment);
  // Some hundred passes over small programs, a few over the largest; about a second at most.
  constexpr uint64_t kPasses = 200, kMostWork = 300'000'000;
  const uint64_t n = blocks.size();
  const uint64_t work = n < 1'000'000 ? std::min(kMostWork, kPasses * (n + 8) * (n + 8)) : kMostWork;
  Contest contest(buffers, blocks, {.left = work});
  contest.run();
  return {std::move(contest.best.offsets), contest.best.peak, std::move(contest.heuristic)};
}

Fit place_within(const std::vector<Lifetime>& buffers, uint64_t alignment, uint64_t capacity, uint64_t work) {
  Fit fit{.verdict = Verdict::kPlaced, .placed = place(buffers, alignment), .nodes = 0};
  if (fit.placed.peak <= capacity) return fit;
  Budget budget{.left = work};
  SearchResult found = search(normalised(buffers, alignment), capacity, budget);
  fit.verdict = found.verdict;
  fit.nodes = found.nodes;
  if (found.verdict == Verdict::kPlaced)
    fit.placed = {std::move(found.layout.offsets), found.layout.peak, "search"};
  return fit;
}

}  // namespace moec::planner
