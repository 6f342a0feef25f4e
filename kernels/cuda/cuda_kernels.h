// The kernels of the CUDA device, one for every row of the catalog. They only enqueue work on the context's
// stream: no allocation, no synchronisation, no look at device data; so each of them can be captured in a
// graph.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <string_view>

#include "kernels/kernel.h"

namespace moec::cuda {

class CudnnAttention;

/// What kernels need of the device; owned by the runtime.
struct CudaContext {
  cudaStream_t stream = nullptr;
  cublasLtHandle_t cublas_lt = nullptr;
  int sm_count = 0;
  bool kernels_overlap = false;  // a kernel may be started before the one in front of it has ended
  void* cublas_workspace = nullptr;
  size_t cublas_workspace_bytes = 0;
  CudnnAttention* cudnn = nullptr;
  void* cudnn_workspace = nullptr;
  size_t cudnn_workspace_bytes = 0;
};

/// Returns the error of the first launch that failed; those of running kernels show at a later
/// synchronisation. cudaErrorNotSupported: no variant for these types or sizes.
using CudaKernel = cudaError_t (*)(const KernelCall& call, const CudaContext& context);

/// Whether this build's kernels for the current GPU wait themselves for what they read (compute capability
/// 9.0), so that they may overlap.
bool kernels_can_overlap();

/// nullptr when the catalog has no such key.
CudaKernel find_kernel(std::string_view key);

#define KERNEL(key, signature, in_place, workspace) \
  cudaError_t key(const KernelCall& call, const CudaContext& context);
#include "kernels/catalog.def"
#undef KERNEL

}  // namespace moec::cuda
