// From steps and values to buffers with lifetimes.
#pragma once

#include <vector>

#include "planner/planner.h"

namespace moec::planner {

struct Lifetimes {
  std::vector<Lifetime> buffers;
  std::vector<uint32_t> kept;            // per buffer, the last step at which it keeps its place
  std::vector<int> buffer_of_value;      // -1 for a value that no step touches
  std::vector<int> buffer_of_workspace;  // per step, -1 for none
};

/// One buffer per workspace and per chain of values that take over each other's memory. An output takes over
/// an input where the step shares them, the step is the input's last reader, the input is not in `live_out`,
/// no step that lags may still read it unless the share is required, and the sizes are equal; a value that
/// the step reads several times needs a share for each reading. The first such input in the order of the
/// shares wins, required ones before the others. A value that is never read lives for the step that writes
/// it. Throws std::invalid_argument for indices out of range, a value read before it is written or written
/// twice, and a required share that cannot be kept.
Lifetimes derive_lifetimes(const Problem& problem);

}  // namespace moec::planner
