// Offsets for buffers whose lifetimes are known.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/planner.h"
#include "planner/search.h"

namespace moec::planner {

struct Offsets {
  std::vector<uint64_t> offsets;  // per buffer, in the order given
  uint64_t peak = 0;
  std::string heuristic;
};

/// The largest sum of sizes live at one step, sizes rounded up to `alignment`.
uint64_t live_bytes_lower_bound(const std::vector<Lifetime>& buffers, uint64_t alignment);

/// Places buffers so that no two that live at the same step overlap: the best of an allocator in time order,
/// several greedy orders with lowest free offsets and strip packing, and, where all of these leave a gap to
/// the lower bound, a bounded search for something lower. Offsets are multiples of `alignment`; the result
/// depends on the arguments alone. Throws std::invalid_argument for a lifetime that ends before it starts and
/// for a sum of sizes over 2^62.
Offsets place(const std::vector<Lifetime>& buffers, uint64_t alignment);

struct Fit {
  Verdict verdict = Verdict::kBudgetSpent;
  Offsets placed;      // the lowest placement found, whatever the verdict
  uint64_t nodes = 0;  // of the search
};

/// As place(), and searches on, for at most `work` comparisons, until the peak is at most `capacity`.
Fit place_within(const std::vector<Lifetime>& buffers, uint64_t alignment, uint64_t capacity, uint64_t work);

}  // namespace moec::planner
