// Which calls are small. The compiler and the CUDA device must agree on it.
#pragma once

namespace moec {

/// Whether a call leaves most of a GPU idle, so that another may run beside it.
constexpr bool is_small_call(double flops, double bytes) { return flops < 1e9 && bytes < (64 << 20); }

}  // namespace moec
