// Which calls may run beside others. The compiler and the CUDA device must agree on it.
#pragma once

#include <string_view>

namespace moec {

/// Whether a call leaves most of a GPU idle, so that another may run beside it.
constexpr bool is_small_call(double flops, double bytes) { return flops < 1e9 && bytes < (64 << 20); }

/// Whether a call that is not small, and of which nothing needs the results soon, may run beside others all
/// the same: these take the place of its last blocks, when it no longer fills the GPU. Its branch has no
/// workspace for cuBLAS.
constexpr bool is_large_call_beside(std::string_view kernel, double flops, double bytes) {
  return kernel == "grouped_linear_bwd_weight" && !is_small_call(flops, bytes);
}

}  // namespace moec
