// Starting kernels whose blocks work on tiles in dynamic shared memory.
#pragma once

#include <cooperative_groups.h>

#include <cstddef>

#include "kernels/cuda/launch.cuh"

namespace moec::cuda {

/// The dynamic shared memory of the block.
__device__ inline void* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

/// Most blocks of a cluster on any device that has clusters.
constexpr int kMostClusterBlocks = 8;

/// Whether blocks of the device can form clusters: from compute capability 9.0 on, as overlapping kernels.
inline bool has_clusters(const CudaContext& context) { return context.kernels_overlap; }

/// Number of this block in its cluster, and of blocks in it: 0 and 1 where the device has no clusters.
__device__ inline int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().block_rank());
#else
  return 0;
#endif
}
__device__ inline int cluster_blocks() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
#else
  return 1;
#endif
}

/// The two halves of a barrier for all threads of the cluster: what they wrote to shared memory before they
/// arrived is there to be read after they have waited.
__device__ inline void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().barrier_arrive();
#endif
}
__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().barrier_wait();
#else
  __syncthreads();
#endif
}

/// Both at once.
__device__ inline void sync_cluster() {
  arrive_at_cluster();
  wait_for_cluster();
}

/// Where the shared memory at `local` lies in block `rank` of the cluster.
template <class T>
__device__ T* cluster_shared(T* local, int rank) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(local, rank);
#else
  return local;
#endif
}

/// Enqueues kernel(args...), which starts with begin_kernel(), in clusters of `cluster` blocks along x, with
/// `shared` bytes of dynamic shared memory per block; an empty grid is no work. Fails where blocks of the
/// device cannot have so much shared memory.
template <class... Params, class... Args>
cudaError_t launch_clusters(const CudaContext& context, void (*kernel)(Params...), dim3 grid, int cluster,
                            int threads, size_t shared, const Args&... args) {
  constexpr size_t kDefaultLimit = 48 * 1024;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared > kDefaultLimit) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (context.kernels_overlap) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = shared;
  config.stream = context.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <class... Params, class... Args>
cudaError_t launch_grid(const CudaContext& context, void (*kernel)(Params...), dim3 grid, int threads,
                        size_t shared, const Args&... args) {
  return launch_clusters(context, kernel, grid, 1, threads, shared, args...);
}

}  // namespace moec::cuda
