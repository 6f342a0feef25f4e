// A captured sequence of programs as launches: of calls alone, of runs of calls, of batches.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cuda/call_run.h"
#include "runtime/cuda/schedule.h"
#include "runtime/plan.h"

namespace moec::runtime {

/// A program and an instruction of it.
using Place = std::pair<size_t, size_t>;

/// A call, and what the plan says of it.
struct PlacedCall {
  Place place;
  const fb::InstructionT* instruction = nullptr;
  std::string_view variant;  // empty where the device chooses
  const KernelCall* call = nullptr;
};

/// The launches of a sequence of calls. A call that a variant is chosen for is always alone.
class CallSequence {
 public:
  /// Unless `together`, every call is alone, and all are in one stream.
  CallSequence(std::span<const PlacedCall> calls, bool together, const cuda::CudaContext& context);
  CallSequence(const CallSequence&) = delete;
  CallSequence& operator=(const CallSequence&) = delete;

  std::span<const ScheduledLaunch> schedule() const { return schedule_; }

  /// Of the last call of a launch.
  const Place& place(const ScheduledLaunch& launch) const { return items_[launch.calls.back()].last.place; }

  /// Whether a launch is that of one call, by its own kernel.
  bool is_alone(const ScheduledLaunch& launch) const;

  /// Enqueues a launch of several calls.
  cudaError_t enqueue_together(const ScheduledLaunch& launch, const cuda::CudaContext& context) const;

  /// The time that no GPU of today goes below: what a launch lasts at least.
  double least_seconds(const ScheduledLaunch& launch) const;

 private:
  /// A call, or a launch of a run of them.
  struct Item {
    std::vector<cuda::KeyedCall> calls;
    PlacedCall last;
    cuda::RunLaunch run;

    bool is_run() const { return run.enqueue != nullptr; }
    SequenceCall to_schedule(bool together) const;
  };

  void add_items(std::span<const PlacedCall> calls, bool together, const cuda::CudaContext& context);

  std::vector<Item> items_;
  std::vector<SequenceCall> calls_;  // one per item, with pointers into it
  std::vector<ScheduledLaunch> schedule_;
};

}  // namespace moec::runtime
