// Offsets for buffers whose lifetimes are known.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/planner.h"

namespace moec::planner {

struct Offsets {
  std::vector<uint64_t> offsets;  // per buffer, in the order given
  uint64_t peak = 0;
  std::string heuristic;
};

/// The largest sum of sizes live at one step, sizes rounded up to `alignment`.
uint64_t live_bytes_lower_bound(const std::vector<Lifetime>& buffers, uint64_t alignment);

/// Places buffers so that no two that live at the same step overlap: the best of an allocator in time order,
/// several greedy orders with lowest free offsets, strip packing, and a bounded local search over orders
/// where all of these leave a gap to the lower bound. Offsets are multiples of `alignment`; the result
/// depends on the arguments alone. Throws std::invalid_argument for a lifetime that ends before it starts and
/// for a sum of sizes over 2^62.
Offsets place(const std::vector<Lifetime>& buffers, uint64_t alignment);

}  // namespace moec::planner
