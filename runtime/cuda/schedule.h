// Which calls of a captured sequence run beside the others.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/cuda/batched.h"
#include "kernels/kernel.h"
#include "runtime/cuda/cuda_handles.h"

namespace moec::runtime {

/// A call in the order of the plan, or what stands for several. One that `may_lag` can run beside those
/// behind it that do not need its results. Calls with the same `batch` can be computed in one launch if none
/// needs or overwrites what another one writes.
struct SequenceCall {
  const KernelCall* call = nullptr;
  bool may_lag = false;
  cuda::BatchedKernel batch = nullptr;
  size_t count = 1;  // of the plan's calls that it stands for
};

/// A call, or several that are computed together, in one of two streams, each of which keeps the order of
/// launches.
struct ScheduledLaunch {
  static constexpr size_t kNone = static_cast<size_t>(-1);

  std::vector<size_t> calls;
  bool beside = false;      // in the second stream
  size_t wait_for = kNone;  // launch of the other stream that must have ended before
  bool awaited = false;     // a launch of the other stream waits for this one
};

/// Moves calls that may lag and whose results are needed much later, such as gradients of weights, to the
/// second stream, from where they do not hold up what depends on something else; several of a kind wait for
/// each other and go together. The byte ranges that calls read and write decide what must wait, so that
/// memory which buffers share is as safe as in one stream. The first call, and so the start of the second
/// stream, is in the first one. Calls of the first stream keep the order of the plan.
std::vector<ScheduledLaunch> schedule_calls(std::span<const SequenceCall> calls);

/// Captures a schedule into two streams, of which the first is being captured: before(i), the launch number i
/// in its stream, after(i), for all launches in order, and join() at the end.
class ScheduledStreams {
 public:
  ScheduledStreams(cudaStream_t stream, cudaStream_t beside, std::span<const ScheduledLaunch> schedule)
      : streams_{stream, beside}, schedule_(schedule), ended_(schedule_.size()) {}

  cudaError_t before(size_t launch);
  cudaError_t after(size_t launch);
  cudaError_t join();

 private:
  cudaError_t record(size_t launch);

  cudaStream_t streams_[2];
  std::span<const ScheduledLaunch> schedule_;
  std::vector<CudaEvent> ended_;  // of launches that another waits for
};

}  // namespace moec::runtime
