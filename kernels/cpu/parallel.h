// Parallel loops whose results do not depend on the number of threads: work is cut into pieces whose size is fixed
// by the problem, and every piece is computed by one thread.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace moec::cpu {

/// Calls body(i) for i in [0, count), pieces handed out as threads get free.
template <class Body>
void parallel_for(int64_t count, Body&& body) {
  if (count == 1) {
    body(int64_t{0});
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) body(i);
}

/// Calls body(begin, end) for the pieces of [0, count) with `grain` items each (the last one shorter).
template <class Body>
void parallel_ranges(int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  parallel_for((count + grain - 1) / grain,
               [&](int64_t piece) { body(piece * grain, std::min(count, (piece + 1) * grain)); });
}

}  // namespace moec::cpu
