#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

namespace {

/// Compiled for the same architectures as every other kernel.
__global__ void probe_kernel() {}

}  // namespace

bool kernels_can_overlap() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

CudaKernel find_kernel(std::string_view key) {
#define KERNEL(name, signature, in_place, workspace) \
  if (key == #name) return name;
#include "kernels/catalog.def"
#undef KERNEL
  return nullptr;
}

}  // namespace moec::cuda
