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
  std::vector<int> waiting = indices(blocks);
  std::erase_if(waiting, [&](int i) { return blocks[i].size == 0; });
  std::ranges::stable_sort(waiting, [&](int a, int b) {
    const uint32_t length_a = blocks[a].last - blocks[a].first, length_b = blocks[b].last - blocks[b].first;
    return length_a != length_b ? length_a > length_b : blocks[a].size > blocks[b].size;
  });
  if (waiting.empty()) return true;

  // The skyline: stretches of steps [key, key of the next), by height and start. No neighbours are level.
  std::map<uint32_t, uint64_t> skyline{{0, 0}};
  std::set<std::pair<uint64_t, uint32_t>> by_height{{0, 0}};
  const uint32_t end_of_time =
      1 + blocks[*std::ranges::max_element(waiting, {}, [&](int i) { return blocks[i].last; })].last;
  const auto stop_of = [&](auto stretch) {
    return std::next(stretch) == skyline.end() ? end_of_time : std::next(stretch)->first;
  };
  const auto set_height = [&](uint32_t start, uint64_t height) {
    if (const auto old = skyline.find(start); old != skyline.end()) by_height.erase({old->second, start});
    skyline[start] = height;
    by_height.insert({height, start});
  };
  const auto join_left = [&](uint32_t start) {
    const auto stretch = skyline.find(start);
    if (stretch == skyline.end() || stretch == skyline.begin()) return;
    if (std::prev(stretch)->second != stretch->second) return;
    by_height.erase({stretch->second, start});
    skyline.erase(stretch);
  };

  while (!waiting.empty()) {
    const auto [height, start] = *by_height.begin();
    const auto stretch = skyline.find(start);
    const uint32_t stop = stop_of(stretch);
    const auto fits = [&](int i) { return blocks[i].first >= start && blocks[i].last < stop; };
    const auto chosen = std::ranges::find_if(waiting, fits);
    budget.spend(static_cast<uint64_t>(chosen - waiting.begin()) + 1);
    if (budget.spent()) return false;
    if (chosen == waiting.end()) {
      uint64_t raised = std::numeric_limits<uint64_t>::max();
      if (stretch != skyline.begin()) raised = std::prev(stretch)->second;
      if (stop != end_of_time) raised = std::min(raised, std::next(stretch)->second);
      set_height(start, raised);
      join_left(stop);
      join_left(start);
      continue;
    }
    const Lifetime& block = blocks[*chosen];
    layout.offsets[*chosen] = height;
    layout.peak = std::max(layout.peak, height + block.size);
    if (block.last + 1 < stop) set_height(block.last + 1, height);
    set_height(block.first, height + block.size);
    join_left(stop);
    join_left(block.first);
    waiting.erase(chosen);
  }
  return true;
}

}  // namespace moec::planner
