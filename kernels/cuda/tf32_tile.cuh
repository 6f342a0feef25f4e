// Floats as the tensor cores multiply them nearly as exactly as in f32 arithmetic.
#pragma once

#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

/// The values of a fragment as sums of two TF32 numbers each, which keep 22 of the 24 bits at least.
template <int kRegisters>
struct SplitFragment {
  uint32_t big[kRegisters], small[kRegisters];

  __device__ void split(int i, float value) {
    big[i] = round_tf32(value);
    small[i] = __float_as_uint(value - __uint_as_float(big[i]));
  }
};

}  // namespace moec::cuda
