// Starting kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// Threads of a block where a kernel has no reason for another number.
constexpr int kThreads = 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Waits until the kernels before this one in the stream are done and what they wrote is there to be read.
/// The first statement of every kernel that these functions enqueue. None of them lets the kernel behind it
/// be started before its blocks end: blocks that wait beside running ones would be dealt out to what room
/// these leave, several to one multiprocessor and none to another, and be as slow as the fullest.
__device__ inline void begin_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

/// Enqueues kernel(args...), which starts with begin_kernel(), with `shared` bytes of dynamic shared memory;
/// no blocks are no work.
template <class... Params, class... Args>
cudaError_t launch_shared(const CudaContext& context, void (*kernel)(Params...), int64_t blocks, int threads,
                          size_t shared, Args... args) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = shared;
  config.stream = context.stream;
  config.attrs = &overlap;
  config.numAttrs = context.kernels_overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <class... Params, class... Args>
cudaError_t launch(const CudaContext& context, void (*kernel)(Params...), int64_t blocks, int threads,
                   Args... args) {
  return launch_shared(context, kernel, blocks, threads, 0, args...);
}

/// Number of this thread in its grid.
__device__ inline int64_t global_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

}  // namespace moec::cuda
