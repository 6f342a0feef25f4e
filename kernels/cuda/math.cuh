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

/// 1 / sqrt(x), of no denormal x.
template <class T, class Acc = Accumulator<T>>
__device__ inline Acc inverse_root(Acc x) {
  if constexpr (kHalfPrecision<T>) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  } else {
    return 1 / std::sqrt(x);
  }
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

/// Distribution function of N(0, 1), (1 + erf(x / sqrt 2)) / 2. In f32 by erf, which takes a third of the
/// instructions of erfc; for 16-bit storage by a polynomial for the logarithm of the tail beyond |x|, to
/// within 2^-17 of it where it is above 2^-25.
template <class T, class Acc>
__device__ inline Acc normal_cdf(Acc x) {
  constexpr auto kHalf = static_cast<Acc>(0.5), kRootHalf = static_cast<Acc>(0.7071067811865476);
  if constexpr (kHalfPrecision<T>) {
    constexpr float kTerms[] = {-1.8098740e-6f, 6.1177445e-5f, -9.2778535e-4f, 8.4992396e-3f,
                                -5.3946413e-2f, -0.45847434f,  -1.1512485f,    -0.99999544f};
    const float distance = std::abs(x);
    float power = kTerms[0], tail;
#pragma unroll
    for (int i = 1; i < 8; ++i) power = power * distance + kTerms[i];
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(tail) : "f"(power));
    return x < 0 ? tail : 1 - tail;
  } else if constexpr (std::is_same_v<Acc, float>) {
    return kHalf + kHalf * std::erf(x * kRootHalf);
  } else {
    return kHalf * std::erfc(-x * kRootHalf);
  }
}

}  // namespace moec::cuda
