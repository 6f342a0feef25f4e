#include "planner/planner.h"

#include <utility>

#include "planner/lifetimes.h"
#include "planner/place.h"

namespace moec::planner {

Placement plan_memory(const Problem& problem) {
  Lifetimes lifetimes = derive_lifetimes(problem);
  std::vector<Lifetime> kept = lifetimes.buffers;
  for (size_t i = 0; i < kept.size(); ++i) kept[i].last = lifetimes.kept[i];
  Offsets placed = place(kept, kAlignment);
  Placement result;
  result.lower_bound = live_bytes_lower_bound(lifetimes.buffers, kAlignment);
  result.buffers = std::move(lifetimes.buffers);
  result.offsets = std::move(placed.offsets);
  result.buffer_of_value = std::move(lifetimes.buffer_of_value);
  result.buffer_of_workspace = std::move(lifetimes.buffer_of_workspace);
  result.peak = placed.peak;
  result.heuristic = std::move(placed.heuristic);
  return result;
}

}  // namespace moec::planner
