#include "kernels/cpu/cpu_kernels.h"

#include <omp.h>

namespace moec::cpu {

CpuKernel find_kernel(std::string_view key) {
#define KERNEL(name, signature, in_place, workspace) \
  if (key == #name) return name;
#include "kernels/catalog.def"
#undef KERNEL
  return nullptr;
}

void set_threads(int threads) { omp_set_num_threads(threads > 0 ? threads : omp_get_num_procs()); }
int threads() { return omp_get_max_threads(); }

}  // namespace moec::cpu
