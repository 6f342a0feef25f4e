// Which calls of a captured sequence run beside the others.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "kernels/kernel.h"
#include "runtime/cuda/cuda_handles.h"

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

/// Captures a schedule into two streams, of which the first is being captured: before(i), the call number i
/// in its stream, after(i), for all calls in order, and join() at the end.
class ScheduledStreams {
 public:
  ScheduledStreams(cudaStream_t stream, cudaStream_t beside, std::vector<ScheduledCall> schedule)
      : streams_{stream, beside}, schedule_(std::move(schedule)), ended_(schedule_.size()) {}

  bool beside(size_t call) const { return schedule_[call].beside; }
  cudaError_t before(size_t call);
  cudaError_t after(size_t call);
  cudaError_t join();

 private:
  cudaError_t record(size_t call);

  cudaStream_t streams_[2];
  std::vector<ScheduledCall> schedule_;
  std::vector<CudaEvent> ended_;  // of calls that another waits for
};

}  // namespace moec::runtime
