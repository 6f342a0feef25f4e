// Starting kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// Threads of a block where a kernel has no reason for another number.
constexpr int kThreads = 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Enqueues kernel(args...) with `shared` bytes of dynamic shared memory; no blocks are no work.
template <class... Params, class... Args>
cudaError_t launch_shared(const CudaContext& context, void (*kernel)(Params...), int64_t blocks, int threads,
                          size_t shared, Args... args) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared, context.stream>>>(args...);
  return cudaGetLastError();
}

template <class... Params, class... Args>
cudaError_t launch(const CudaContext& context, void (*kernel)(Params...), int64_t blocks, int threads,
                   Args... args) {
  return launch_shared(context, kernel, blocks, threads, 0, args...);
}

/// Number of this thread in its grid.
__device__ inline int64_t global_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

}  // namespace moec::cuda
