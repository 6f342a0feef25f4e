// Which calls may run beside others. The compiler and the CUDA device must agree on it.
#pragma once

#include <string_view>

namespace moec {

/// Whether a call leaves most of a GPU idle, so that another may run beside it.
constexpr bool is_small_call(double flops, double bytes) { return flops < 1e9 && bytes < (64 << 20); }

/// Whether a call has the whole GPU, but for its end, in which the blocks of another can take the place of
/// those that are done, and nothing needs its results soon.
constexpr bool fills_gaps(std::string_view kernel) { return kernel == "grouped_linear_bwd_weight"; }

}  // namespace moec
