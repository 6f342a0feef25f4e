#include "planner/sections.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace moec::planner {

Sections::Sections(const std::vector<Lifetime>& blocks) {
  uint32_t last = 0;
  for (const Lifetime& block : blocks) last = std::max(last, block.last);
  floors_.resize(size_t{last} + 1);
  loads_.resize(floors_.size());
  lowest_.resize(floors_.size());
  crossing_.resize(floors_.size() + 1);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Lifetime& block = blocks[i];
    if (block.size == 0) continue;
    waiting_.push_back(
        {.size = block.size, .first = block.first, .last = block.last, .index = static_cast<int>(i)});
    for (uint32_t s = block.first; s <= block.last; ++s) loads_[s] += block.size;
  }
}

std::optional<uint32_t> Sections::raise_floors(const Region& region, uint64_t capacity, uint64_t& work) {
  for (bool raised = true; raised;) {
    raised = false;
    std::fill(lowest_.begin() + region.first, lowest_.begin() + region.last + 1,
              std::numeric_limits<uint64_t>::max());
    work += region.last - region.first + 1;
    for (WaitingBlock& block : region.waiting) {
      uint64_t lowest = 0;
      for (uint32_t s = block.first; s <= block.last; ++s) lowest = std::max(lowest, floors_[s]);
      for (uint32_t s = block.first; s <= block.last; ++s) lowest_[s] = std::min(lowest_[s], lowest);
      block.lowest = lowest;
      work += block.last - block.first + 1;
    }
    for (uint32_t s = region.first; s <= region.last; ++s) {
      if (loads_[s] == 0 || floors_[s] == lowest_[s]) continue;
      raise(s, lowest_[s]);
      if (floors_[s] + loads_[s] > capacity) return s;
      raised = true;
    }
  }
  return std::nullopt;
}

void Sections::place(Region& region, int index, uint64_t offset) {
  WaitingBlock& block = *std::ranges::find(region.waiting, index, &WaitingBlock::index);
  for (uint32_t s = block.first; s <= block.last; ++s)
    change(s, {offset + block.size, loads_[s] - block.size});
  std::swap(block, region.waiting.back());
  region.waiting = region.waiting.first(region.waiting.size() - 1);
}

std::vector<Region> Sections::split(const Region& region) {
  // Blocks that live both at s - 1 and at s.
  const auto crossing = crossing_.begin();
  std::fill(crossing + region.first, crossing + region.last + 2, 0);
  for (const WaitingBlock& block : region.waiting) ++crossing[block.first + 1], --crossing[block.last + 1];
  std::vector<Region> parts;
  for (uint32_t s = region.first; s <= region.last; ++s) {
    if (s > region.first) crossing[s] += crossing[s - 1];
    if (loads_[s] == 0) continue;
    if (crossing[s] == 0) parts.push_back({.first = s, .last = s, .waiting = {}});
    parts.back().last = s;
  }
  if (parts.size() == 1) {
    parts[0].waiting = region.waiting;
    return parts;
  }
  std::ranges::sort(region.waiting, {}, [](const WaitingBlock& w) { return std::pair(w.first, w.index); });
  auto begin = region.waiting.begin();
  for (Region& part : parts) {
    const auto end = std::partition_point(begin, region.waiting.end(),
                                          [&](const auto& w) { return w.first <= part.last; });
    part.waiting = {begin, end};
    begin = end;
  }
  return parts;
}

void Sections::undo(size_t mark) {
  for (; changes_.size() > mark; changes_.pop_back()) {
    const auto& [section, before] = changes_.back();
    floors_[section] = before.floor;
    loads_[section] = before.load;
  }
}

}  // namespace moec::planner
