// Parallel loops whose results do not depend on the number of threads: work is cut into pieces whose size is
// fixed by the problem, and every piece is computed by one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace moec::cpu {

/// Calls body(context, i) for i in [0, count) on all threads, the caller among them, and returns when all are
/// done. A loop inside a loop runs on the thread it is called from.
void run_parallel(int64_t count, void (*body)(void* context, int64_t i), void* context);

/// Calls body(i) for i in [0, count), pieces handed out as threads get free.
template <class Body>
void parallel_for(int64_t count, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_parallel(
      count, [](void* context, int64_t i) { (*static_cast<Plain*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

/// Calls body(begin, end) for the pieces of [0, count) with `grain` items each (the last one shorter).
template <class Body>
void parallel_ranges(int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  parallel_for((count + grain - 1) / grain,
               [&](int64_t piece) { body(piece * grain, std::min(count, (piece + 1) * grain)); });
}

}  // namespace moec::cpu
