// What the GPU can do at best.
#pragma once

#include "bench/lane.h"
#include "runtime/status.h"

namespace moec::bench {

/// Of the current GPU: cuBLAS' bf16 product of 8192 cubed on random operands, and a copy of 1 GiB within its
/// memory. A build without CUDA, and a machine without a GPU, give an error.
Result<Ceilings> measure_cuda_ceilings();

}  // namespace moec::bench
