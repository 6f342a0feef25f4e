// Which calls of a captured sequence run beside the others.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/kernel.h"

namespace moec::runtime {

/// A call in the order of the plan. One that is `small` leaves most of the device idle.
struct SequenceCall {
  const KernelCall* call = nullptr;
  bool small = false;
};

/// A place in one of two streams, each of which keeps the order of the plan.
struct ScheduledCall {
  static constexpr size_t kNone = static_cast<size_t>(-1);

  bool beside = false;      // in the second stream
  size_t wait_for = kNone;  // call of the other stream that must have ended before
  bool awaited = false;     // a call of the other stream waits for this one
};

/// Moves small calls whose results are needed much later, such as gradients of weights, to the second stream,
/// from where they do not hold up what depends on something else. The byte ranges that calls read and write
/// decide what must wait, so that memory which buffers share is as safe as in one stream. The first call, and
/// so the start of the second stream, is in the first one.
std::vector<ScheduledCall> schedule_calls(std::span<const SequenceCall> calls);

}  // namespace moec::runtime
