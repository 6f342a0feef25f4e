#include "runtime/cuda/call_sequence.h"

#include <algorithm>

#include "kernels/beside.h"
#include "kernels/cuda/batched.h"
#include "runtime/cuda/nvtx_range.h"

namespace moec::runtime {

CallSequence::CallSequence(std::span<const PlacedCall> calls, bool together,
                           const cuda::CudaContext& context) {
  add_items(calls, together, context);
  for (const Item& item : items_) calls_.push_back(item.to_schedule(together));
  schedule_ = schedule_calls(calls_);
}

void CallSequence::add_items(std::span<const PlacedCall> calls, bool together,
                             const cuda::CudaContext& context) {
  std::vector<cuda::KeyedCall> keyed;
  for (const PlacedCall& placed : calls) {
    const bool alone = !together || !placed.variant.empty();
    keyed.push_back({alone ? std::string_view() : placed.instruction->kernel, placed.call});
  }
  for (auto rest = std::span<const cuda::KeyedCall>(keyed); !rest.empty();) {
    cuda::CallRun run = cuda::find_call_run(rest, context);
    if (run.calls == 0) run = {.calls = 1, .launches = {{}}};
    const auto of_run = rest.first(run.calls);
    rest = rest.subspan(run.calls);
    for (cuda::RunLaunch& launch : run.launches)
      items_.push_back({.calls = {of_run.begin(), of_run.end()},
                        .last = calls[calls.size() - rest.size() - 1],
                        .run = std::move(launch)});
  }
}

SequenceCall CallSequence::Item::to_schedule(bool together) const {
  const fb::InstructionT& instruction = *last.instruction;
  const auto flops = static_cast<double>(instruction.flops), bytes = static_cast<double>(instruction.bytes);
  // cuDNN's calls share one workspace, so they stay in one stream.
  Branch branch = kChain;
  if (together && last.variant != "cudnn") {
    if (is_small_call(flops, bytes)) branch = kSmallCalls;
    if (is_large_call_beside(instruction.kernel, flops, bytes)) branch = kLargeCalls;
  }
  return {is_run() ? &run.operands : last.call, branch,
          is_run() || !last.variant.empty() ? nullptr : cuda::find_batched_kernel(instruction.kernel),
          calls.size()};
}

bool CallSequence::is_alone(const ScheduledLaunch& launch) const {
  return launch.calls.size() == 1 && !items_[launch.calls.front()].is_run();
}

cudaError_t CallSequence::enqueue_together(const ScheduledLaunch& launch,
                                           const cuda::CudaContext& context) const {
  const Item& first = items_[launch.calls.front()];
  if (first.is_run()) {
    const NvtxRange range("run");
    return first.run.enqueue(first.calls, context);
  }
  const NvtxRange range("batch");
  std::vector<const KernelCall*> together;
  for (const size_t i : launch.calls) together.push_back(calls_[i].call);
  return calls_[launch.calls.front()].batch(together, context);
}

double CallSequence::least_seconds(const ScheduledLaunch& launch) const {
  constexpr double kFlops = 1e15, kBytes = 4e12;  // per second
  double seconds = 0;
  for (const size_t i : launch.calls) {
    const fb::InstructionT& instruction = *items_[i].last.instruction;
    seconds += std::max(static_cast<double>(instruction.flops) / kFlops,
                        static_cast<double>(instruction.bytes) / kBytes);
  }
  return seconds;
}

}  // namespace moec::runtime
