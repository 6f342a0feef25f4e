// Starting kernels whose blocks work on tiles in dynamic shared memory.
#pragma once

#include <cstddef>

#include "kernels/cuda/launch.cuh"

namespace moec::cuda {

/// The dynamic shared memory of the block.
__device__ inline void* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

/// Enqueues kernel(args...) with `shared` bytes of dynamic shared memory per block; an empty grid is no work.
/// Fails where blocks of the device cannot have so much shared memory.
template <class... Params, class... Args>
cudaError_t launch_grid(const CudaContext& context, void (*kernel)(Params...), dim3 grid, int threads,
                        size_t shared, const Args&... args) {
  constexpr size_t kDefaultLimit = 48 * 1024;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared > kDefaultLimit) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, static_cast<unsigned>(threads), shared, context.stream>>>(Params(args)...);
  return cudaGetLastError();
}

}  // namespace moec::cuda
