// Ways to pack blocks - rectangles of time by bytes - into the least height. Every one is deterministic, and
// its work is counted rather than timed, so that a bound on it does not depend on the machine.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/planner.h"

namespace moec::planner {

struct Layout {
  std::vector<uint64_t> offsets;  // per block
  uint64_t peak = 0;
};

/// Comparisons that may still be made.
struct Budget {
  uint64_t left = 0;
  bool spent() const { return left == 0; }
  void spend(uint64_t work) { left -= work < left ? work : left; }
};

/// Places the blocks in this order, each at its lowest free offset, until one would end above `limit` or the
/// budget is spent. Returns the number of blocks placed; `layout` is complete when that is all of them.
size_t first_fit(const std::vector<Lifetime>& blocks, const std::vector<int>& order, uint64_t limit,
                 Budget& budget, Layout& layout);

/// An allocator in time order: each block, when it starts, gets the smallest gap that holds it.
Layout best_fit_in_time(const std::vector<Lifetime>& blocks);

/// The strip-packing rule of Burke, Kendall and Whitwell (2004): at the lowest stretch of the skyline over
/// time put the longest block that fits into the stretch, and raise the stretch to its lower neighbour where
/// none does. Returns false, with the layout incomplete, when the budget is spent before.
bool lowest_stretch(const std::vector<Lifetime>& blocks, Budget& budget, Layout& layout);

}  // namespace moec::planner
