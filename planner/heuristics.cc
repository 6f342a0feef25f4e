#include "planner/heuristics.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <utility>

namespace moec::planner {
namespace {

struct Placed {
  uint64_t begin = 0, end = 0;
  uint32_t first = 0, last = 0;
};

/// Gaps of an unbounded arena.
class Gaps {
 public:
  Gaps() { insert(0, std::numeric_limits<uint64_t>::max()); }

  uint64_t take(uint64_t size) {
    const auto [gap, begin] = *by_size_.lower_bound({size, 0});
    erase(begin, gap);
    if (gap > size) insert(begin + size, gap - size);
    return begin;
  }

  void give_back(uint64_t begin, uint64_t size) {
    auto next = by_begin_.lower_bound(begin);
    if (next != by_begin_.begin()) {
      const auto [left, left_size] = *std::prev(next);
      if (left + left_size == begin) {
        erase(left, left_size);
        begin = left;
        size += left_size;
      }
    }
    if (next != by_begin_.end() && next->first == begin + size) {
      const auto [right, right_size] = *next;
      erase(right, right_size);
      size += right_size;
    }
    insert(begin, size);
  }

 private:
  void insert(uint64_t begin, uint64_t size) {
    by_begin_.emplace(begin, size);
    by_size_.emplace(size, begin);
  }
  void erase(uint64_t begin, uint64_t size) {
    by_begin_.erase(begin);
    by_size_.erase({size, begin});
  }

  std::map<uint64_t, uint64_t> by_begin_;
  std::set<std::pair<uint64_t, uint64_t>> by_size_;
};

std::vector<int> indices(const std::vector<Lifetime>& blocks) {
  std::vector<int> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  return order;
}

/// Heights over steps [0, end), as stretches of equal height; no two neighbours are level.
class Skyline {
 public:
  struct Stretch {
    uint32_t start = 0, stop = 0;
    uint64_t height = 0;
  };

  explicit Skyline(uint32_t end) : end_(end) { set(0, 0); }

  /// The lowest stretch, the first of several.
  Stretch lowest() const {
    const auto [height, start] = *by_height_.begin();
    return {.start = start, .stop = stop_of(height_.find(start)), .height = height};
  }

  /// Puts a block that lies inside the lowest stretch onto it.
  void put(const Lifetime& block) {
    const Stretch under = lowest();
    if (block.last + 1 < under.stop) set(block.last + 1, under.height);
    set(block.first, under.height + block.size);
    join_left(under.stop);
    join_left(block.first);
  }

  /// Levels the lowest stretch with its lower neighbour. There must be a neighbour.
  void raise() {
    const Stretch low = lowest();
    const auto it = height_.find(low.start);
    uint64_t height = std::numeric_limits<uint64_t>::max();
    if (it != height_.begin()) height = std::prev(it)->second;
    if (low.stop != end_) height = std::min(height, std::next(it)->second);
    set(low.start, height);
    join_left(low.stop);
    join_left(low.start);
  }

 private:
  using Heights = std::map<uint32_t, uint64_t>;

  uint32_t stop_of(Heights::const_iterator it) const {
    return std::next(it) == height_.end() ? end_ : std::next(it)->first;
  }

  void set(uint32_t start, uint64_t height) {
    if (const auto old = height_.find(start); old != height_.end()) by_height_.erase({old->second, start});
    height_[start] = height;
    by_height_.insert({height, start});
  }

  /// Drops the border at `start`, if there is one, where both sides are level.
  void join_left(uint32_t start) {
    const auto it = height_.find(start);
    if (it == height_.end() || it == height_.begin() || std::prev(it)->second != it->second) return;
    by_height_.erase({it->second, start});
    height_.erase(it);
  }

  uint32_t end_;
  Heights height_;  // by start
  std::set<std::pair<uint64_t, uint32_t>> by_height_;
};

/// Blocks of one byte or more, the longest first, of these the largest.
std::vector<int> longest_first(const std::vector<Lifetime>& blocks) {
  std::vector<int> order = indices(blocks);
  std::erase_if(order, [&](int i) { return blocks[i].size == 0; });
  std::ranges::stable_sort(order, [&](int a, int b) {
    const uint32_t length_a = blocks[a].last - blocks[a].first, length_b = blocks[b].last - blocks[b].first;
    return length_a != length_b ? length_a > length_b : blocks[a].size > blocks[b].size;
  });
  return order;
}

}  // namespace

size_t first_fit(const std::vector<Lifetime>& blocks, const std::vector<int>& order, uint64_t limit,
                 Budget& budget, Layout& layout) {
  layout.offsets.assign(blocks.size(), 0);
  layout.peak = 0;
  std::vector<Placed> placed;  // by rising begin
  placed.reserve(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const Lifetime& block = blocks[order[i]];
    if (block.size == 0) continue;
    uint64_t offset = 0;
    auto other = placed.begin();
    for (; other != placed.end(); ++other) {
      if (other->last < block.first || other->first > block.last) continue;
      if (other->begin >= offset + block.size) break;
      offset = std::max(offset, other->end);
    }
    budget.spend(static_cast<uint64_t>(other - placed.begin()) + 1);
    const uint64_t end = offset + block.size;
    if (end > limit || budget.spent()) return i;
    const auto place = std::lower_bound(placed.begin(), other, offset,
                                        [](const Placed& p, uint64_t begin) { return p.begin < begin; });
    placed.insert(place, {.begin = offset, .end = end, .first = block.first, .last = block.last});
    layout.offsets[order[i]] = offset;
    layout.peak = std::max(layout.peak, end);
  }
  return order.size();
}

Layout best_fit_in_time(const std::vector<Lifetime>& blocks) {
  Layout layout{.offsets = std::vector<uint64_t>(blocks.size(), 0), .peak = 0};
  std::vector<int> starts = indices(blocks);
  std::vector<int> ends = starts;
  std::ranges::stable_sort(starts, [&](int a, int b) {
    return blocks[a].first != blocks[b].first ? blocks[a].first < blocks[b].first
                                              : blocks[a].last > blocks[b].last;
  });
  std::ranges::stable_sort(ends, {}, [&](int i) { return blocks[i].last; });
  Gaps gaps;
  auto dead = ends.begin();
  for (int i : starts) {
    for (; blocks[*dead].last < blocks[i].first; ++dead)
      if (blocks[*dead].size > 0) gaps.give_back(layout.offsets[*dead], blocks[*dead].size);
    if (blocks[i].size == 0) continue;
    layout.offsets[i] = gaps.take(blocks[i].size);
    layout.peak = std::max(layout.peak, layout.offsets[i] + blocks[i].size);
  }
  return layout;
}

bool lowest_stretch(const std::vector<Lifetime>& blocks, Budget& budget, Layout& layout) {
  layout.offsets.assign(blocks.size(), 0);
  layout.peak = 0;
  std::vector<int> waiting = longest_first(blocks);
  uint32_t last = 0;
  for (int i : waiting) last = std::max(last, blocks[i].last);
  Skyline skyline(last + 1);
  while (!waiting.empty()) {
    const Skyline::Stretch low = skyline.lowest();
    const auto chosen = std::ranges::find_if(
        waiting, [&](int i) { return blocks[i].first >= low.start && blocks[i].last < low.stop; });
    budget.spend(static_cast<uint64_t>(chosen - waiting.begin()) + 1);
    if (budget.spent()) return false;
    if (chosen == waiting.end()) {
      skyline.raise();
      continue;
    }
    layout.offsets[*chosen] = low.height;
    layout.peak = std::max(layout.peak, low.height + blocks[*chosen].size);
    skyline.put(blocks[*chosen]);
    waiting.erase(chosen);
  }
  return true;
}

}  // namespace moec::planner
