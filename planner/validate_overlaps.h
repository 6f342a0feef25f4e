// The part of the validator that knows no plan: do buffers that are live together share bytes?
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace moec::planner {

/// `size` bytes at `offset`, live from step `first` to step `last`, both included.
struct PlacedBuffer {
  uint64_t offset = 0, size = 0;
  uint32_t first = 0, last = 0;
};

struct Overlaps {
  /// A buffer that starts over a live one, and that one; indices. At least one pair when any two buffers
  /// overlap.
  std::vector<std::pair<size_t, size_t>> pairs;
  /// The largest sum of live bytes, sizes rounded up to the alignment.
  uint64_t most_live_bytes = 0;
};

/// Sweeps over time. Shares no code with the planner.
Overlaps find_overlaps(const std::vector<PlacedBuffer>& buffers, uint64_t alignment);

}  // namespace moec::planner
