// What the GPU can do at best.
#pragma once

#include "runtime/ceilings.h"
#include "runtime/status.h"

namespace moec::runtime {

/// Of the current GPU: cuBLAS' bf16 product of 8192 cubed on random operands, and a copy of 1 GiB within its
/// memory, in a fraction of a second and 2 GiB. A build without CUDA, and a machine without a GPU, give an
/// error.
Result<Ceilings> measure_cuda_ceilings();

}  // namespace moec::runtime
