// Which calls may run beside others. The compiler and the CUDA device must agree on it.
#pragma once

#include <string_view>

namespace moec {

/// Whether a call leaves most of a GPU idle, so that another may run beside it.
constexpr bool is_small_call(double flops, double bytes) { return flops < 1e9 && bytes < (64 << 20); }

/// Whether a call of a kernel of which nothing needs the results soon has a whole GPU for so long that blocks
/// of the calls beside it gain more in the place of its last ones than two branches of a graph cost.
constexpr bool fills_gpu(std::string_view kernel, double flops) {
  return kernel == "grouped_linear_bwd_weight" && flops >= 1e11;
}

}  // namespace moec
