// Runs of calls, one behind the other, that are computed by other launches than alone.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// A call, and the key of its kernel.
struct KeyedCall {
  std::string_view key;
  const KernelCall* call = nullptr;
};

/// One launch, of all calls of a run or of a part of what they do.
struct RunLaunch {
  cudaError_t (*enqueue)(std::span<const KeyedCall> calls, const CudaContext& context) = nullptr;
  KernelCall operands = {};  // what it reads and writes; workspaces are outputs
};

/// The first `calls` of a sequence, in which each may need and overwrite what those before it wrote. Launches
/// in their order give all results the bits of the calls one by one, workspaces aside; one may come later, as
/// its operands allow.
struct CallRun {
  size_t calls = 0;
  std::vector<RunLaunch> launches = {};
};

/// The run at the start of a sequence; no calls where nothing computes them together, by their types and
/// shapes, or on this device.
CallRun find_call_run(std::span<const KeyedCall> sequence, const CudaContext& context);

/// Whether the first calls are of kernels with these keys.
bool begins_with(std::span<const KeyedCall> sequence, std::initializer_list<std::string_view> keys);

/// All that calls read and write.
KernelCall operands_of(std::span<const KeyedCall> calls);

/// Whether any of these share memory with any of the others; absent ones do not.
bool overlap(std::span<const TensorView> some, std::span<const TensorView> others);

/// Runs by kernel.
CallRun norm_linear_run(std::span<const KeyedCall> sequence, const CudaContext& context);
CallRun optimizer_step_run(std::span<const KeyedCall> sequence, const CudaContext& context);
CallRun loss_run(std::span<const KeyedCall> sequence, const CudaContext& context);
CallRun batch_embedding_run(std::span<const KeyedCall> sequence, const CudaContext& context);
CallRun embeddings_bwd_run(std::span<const KeyedCall> sequence, const CudaContext& context);
CallRun router_bwd_run(std::span<const KeyedCall> sequence, const CudaContext& context);
CallRun norm_sums_run(std::span<const KeyedCall> sequence, const CudaContext& context);

}  // namespace moec::cuda
