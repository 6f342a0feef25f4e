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

/// Places buffers so that no two that live at the same step overlap; the best of several greedy orders, each placing
/// at the lowest free offset. Offsets are multiples of `alignment`.
Offsets place(const std::vector<Lifetime>& buffers, uint64_t alignment);

}  // namespace moec::planner
