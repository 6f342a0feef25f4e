// The kernels of the CPU device, one for every row of the catalog. They use all threads, and their results do
// not depend on how many there are.
#pragma once

#include <string_view>

#include "kernels/kernel.h"

namespace moec::cpu {

using CpuKernel = void (*)(const KernelCall& call);

/// nullptr when the catalog has no such key.
CpuKernel find_kernel(std::string_view key);

/// Number of threads that kernels use from now on; 0 means all cores.
void set_threads(int threads);
int threads();

#define KERNEL(key, signature, in_place, workspace) void key(const KernelCall& call);
#include "kernels/catalog.def"
#undef KERNEL

}  // namespace moec::cpu
