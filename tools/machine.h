// What this machine can do, measured.
#pragma once

#include "ops_generated.h"

namespace moec::tools {

/// FLOP/s of the CPU device's matrix product at its best (1024 cubed, a fraction of a second), in the type
/// that a plan of `dtype` computes in: f64 for F64, else f32. The reference of MFU.
double cpu_matmul_rate(fb::DType dtype);

}  // namespace moec::tools
