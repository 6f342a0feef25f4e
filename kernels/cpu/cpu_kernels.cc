#include "kernels/cpu/cpu_kernels.h"

namespace moec::cpu {

CpuKernel find_kernel(std::string_view key) {
#define KERNEL(name, signature, in_place, workspace) \
  if (key == #name) return name;
#include "kernels/catalog.def"
#undef KERNEL
  return nullptr;
}

}  // namespace moec::cpu
