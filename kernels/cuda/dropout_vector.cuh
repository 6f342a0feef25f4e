// Dropout of vectors of any width.
#pragma once

#include "kernels/cuda/dropout.cuh"

namespace moec::cuda {

/// Which of the kWidth elements number `first` on of a tensor are kept: element j by bit j.
template <int kWidth>
__device__ uint32_t kept_elements(const Dropout& dropout, int64_t first) {
  uint32_t bits = 0;
#pragma unroll
  for (int run = 0; run < kWidth; run += kDropoutRun) bits |= dropout.kept(first + run) << run;
  return bits;
}

/// Applies to elements of which these are kept.
template <int kWidth, class Acc>
__device__ void drop(const Dropout& dropout, uint32_t kept, Acc (&values)[kWidth]) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] = kept >> j & 1 ? values[j] * dropout.scale<Acc>() : Acc{0};
}

}  // namespace moec::cuda
