#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

CudaKernel find_kernel(std::string_view key) {
#define KERNEL(name, signature, in_place, workspace) \
  if (key == #name) return name;
#include "kernels/catalog.def"
#undef KERNEL
  return nullptr;
}

}  // namespace moec::cuda
