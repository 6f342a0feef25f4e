// Which calls of a captured sequence run beside the others.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/batched.h"
#include "kernels/kernel.h"
#include "runtime/cuda/cuda_handles.h"

namespace moec::runtime {

/// Branches of a captured sequence, each of which keeps the order of its launches: the chain, small calls
/// beside it, large ones beside it, which would hold the small ones up.
enum Branch : uint8_t { kChain, kSmallCalls, kLargeCalls };
constexpr size_t kBranches = 3;

/// A call in the order of the plan, or what stands for several. One of another `branch` than the chain can
/// run beside those behind it that do not need its results. Calls with the same `batch` can be computed in
/// one launch if none needs or overwrites what another one writes.
struct SequenceCall {
  const KernelCall* call = nullptr;
  Branch branch = kChain;
  cuda::BatchedKernel batch = nullptr;
  size_t count = 1;  // of the plan's calls that it stands for
};

/// A call, or several that are computed together.
struct ScheduledLaunch {
  static constexpr size_t kNone = static_cast<size_t>(-1);

  std::vector<size_t> calls;
  Branch branch = kChain;
  std::array<size_t, kBranches> wait_for = {kNone, kNone, kNone};  // launches that must have ended before
  bool awaited = false;  // a launch of another branch waits for this one
};

/// Moves calls that may leave the chain and whose results are needed much later, such as gradients of
/// weights, to their branch, from where they do not hold up what depends on something else; several of a
/// kind wait for each other and go together. The byte ranges that calls read and write decide what must
/// wait, so that memory which buffers share is as safe as in one stream. The first call, and so the start of
/// the others' branches, is in the chain, whose calls keep the order of the plan.
std::vector<ScheduledLaunch> schedule_calls(std::span<const SequenceCall> calls);

/// Captures a schedule into a stream per branch, of which the chain's is being captured: before(i), the
/// launch number i in its stream, after(i), for all launches in order, and join() at the end.
class ScheduledStreams {
 public:
  ScheduledStreams(const std::array<cudaStream_t, kBranches>& streams,
                   std::span<const ScheduledLaunch> schedule)
      : streams_(streams), schedule_(schedule), ended_(schedule_.size()) {}

  cudaError_t before(size_t launch);
  cudaError_t after(size_t launch);
  cudaError_t join();

 private:
  cudaError_t record(size_t launch);

  std::array<cudaStream_t, kBranches> streams_;
  std::span<const ScheduledLaunch> schedule_;
  std::vector<CudaEvent> ended_;  // of launches that another waits for
};

}  // namespace moec::runtime
