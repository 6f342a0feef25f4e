// Memory planning of one program: values with sizes and a fixed order of steps in, buffers with lifetimes
// and offsets out. Knows no ops and no devices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moec::planner {

/// A step may write value `output` over value `input`; with `required` it must.
struct Share {
  int output = 0;
  int input = 0;
  bool required = false;
};

/// One instruction: which values it reads and writes, which of them may share memory, and the scratch bytes
/// that it needs only while it runs. What it reads and its workspace keep their places for `lag` steps more,
/// so that it can run beside these.
struct Step {
  std::vector<int> reads;
  std::vector<int> writes;
  std::vector<Share> shares;
  uint64_t workspace = 0;
  uint32_t lag = 0;
};

/// Values are indices into `sizes` (bytes). A value is written by one step before it is read. Values in
/// `live_out` stay intact to the end.
struct Problem {
  std::vector<uint64_t> sizes;
  std::vector<Step> steps;
  std::vector<int> live_out;
};

/// Live from step `first` to step `last`, both included.
struct Lifetime {
  uint64_t size = 0;
  uint32_t first = 0;
  uint32_t last = 0;
};

struct Placement {
  /// Per buffer: its lifetime and its offset, a multiple of kAlignment.
  std::vector<Lifetime> buffers;
  std::vector<uint64_t> offsets;
  /// Buffer of each value; -1 for a value that no step touches. Values that share memory have one buffer.
  std::vector<int> buffer_of_value;
  /// Buffer of each step's workspace, -1 for none.
  std::vector<int> buffer_of_workspace;
  uint64_t peak = 0;         // bytes of the arena
  uint64_t lower_bound = 0;  // the largest sum of (aligned) live bytes at one step, if no step lags
  std::string heuristic;     // which one won
};

constexpr uint64_t kAlignment = 256;

/// Derives lifetimes, merges values in place where the steps allow it and no later reader is hurt, and places
/// the buffers with the best of several heuristics. Deterministic. Throws std::invalid_argument for a value
/// that is read before it is written, written twice, or out of range.
Placement plan_memory(const Problem& problem);

}  // namespace moec::planner
