#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/cuda/call_run.h"

namespace moec::cuda {

CallRun find_call_run(std::span<const KeyedCall> sequence, const CudaContext& context) {
  for (const auto find : {norm_linear_run, optimizer_step_run, loss_run, batch_embedding_run,
                          embeddings_bwd_run, router_bwd_run, norm_sums_run})
    if (CallRun run = find(sequence, context); run.calls > 0) return run;
  return {};
}

bool begins_with(std::span<const KeyedCall> sequence, std::initializer_list<std::string_view> keys) {
  return sequence.size() >= keys.size() &&
         std::equal(keys.begin(), keys.end(), sequence.begin(),
                    [](std::string_view key, const KeyedCall& keyed) { return key == keyed.key; });
}

bool overlap(std::span<const TensorView> some, std::span<const TensorView> others) {
  const auto range = [](const TensorView& view) {
    const auto begin = reinterpret_cast<uintptr_t>(view.data);
    return std::pair(begin, begin + (view.present() ? static_cast<uintptr_t>(view.bytes()) : 0));
  };
  return std::ranges::any_of(some, [&](const TensorView& a) {
    return std::ranges::any_of(others, [&](const TensorView& b) {
      const auto [begin, end] = range(a);
      const auto [other_begin, other_end] = range(b);
      return std::max(begin, other_begin) < std::min(end, other_end);
    });
  });
}

KernelCall operands_of(std::span<const KeyedCall> calls) {
  KernelCall all;
  for (const KeyedCall& keyed : calls) {
    all.inputs.insert(all.inputs.end(), keyed.call->inputs.begin(), keyed.call->inputs.end());
    all.outputs.insert(all.outputs.end(), keyed.call->outputs.begin(), keyed.call->outputs.end());
    all.outputs.push_back(keyed.call->workspace);
  }
  return all;
}

}  // namespace moec::cuda
