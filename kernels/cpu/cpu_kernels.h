// The kernels of the CPU device, one for every row of the catalog. They use all threads, and their results do
// not depend on how many there are.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

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

/// Runs a kernel of another row of the catalog as a part of one.
template <class Attrs>
void run(CpuKernel kernel, std::vector<TensorView> inputs, TensorView output, Attrs attrs) {
  fb::OpUnion op;
  op.Set(std::move(attrs));
  kernel({.inputs = std::move(inputs), .outputs = {output}, .workspace = {}, .op = &op});
}

}  // namespace moec::cpu
