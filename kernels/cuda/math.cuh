// Elementary functions of one element, as accurate as the storage type T of the result asks for: the fast
// approximations of the hardware, good to about 2^-21, for 16-bit storage, and the library's functions
// otherwise.
#pragma once

#include <cmath>

#include "kernels/cuda/types.cuh"

namespace moec::cuda {

template <class T>
constexpr bool kHalfPrecision = sizeof(T) == 2;

/// e^x.
template <class T, class Acc = Accumulator<T>>
__device__ inline Acc exponential(Acc x) {
  if constexpr (kHalfPrecision<T>)
    return __expf(x);
  else
    return std::exp(x);
}

/// 1 / (1 + e^-x).
template <class T, class Acc = Accumulator<T>>
__device__ inline Acc sigmoid(Acc x) {
  if constexpr (kHalfPrecision<T>) {
    // Denormals, which these instructions take for 0, would not show in the sum.
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1 + power));
    return result;
  } else {
    return 1 / (1 + std::exp(-x));
  }
}

/// Distribution function of N(0, 1), (1 + erf(x / sqrt 2)) / 2; in f32 by erf, which takes a third of the
/// instructions of erfc.
template <class Acc>
__device__ inline Acc normal_cdf(Acc x) {
  constexpr auto kHalf = static_cast<Acc>(0.5), kRootHalf = static_cast<Acc>(0.7071067811865476);
  if constexpr (std::is_same_v<Acc, float>)
    return kHalf + kHalf * std::erf(x * kRootHalf);
  else
    return kHalf * std::erfc(-x * kRootHalf);
}

}  // namespace moec::cuda
