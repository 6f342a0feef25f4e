// Elementary functions of one element, written without branches or library calls so that the compiler
// vectorises the loops they stand in. Types other than float use the standard library.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace moec::cpu {

/// e^x. For float: within 1.01 ulp where the result is normal; 0 below -104, infinity above 88.73, NaN for
/// NaN. 2^n * e^r with n = round(x / ln 2), |r| <= ln(2)/2 reduced in two steps (Cody and Waite), e^r as a
/// polynomial with the coefficients of Cephes' expf.
template <class T>
inline T exp_fast(T x) {
  return std::exp(x);
}

template <>
inline float exp_fast(float x) {
  x = x < -104.0f ? -104.0f : x;  // in this form a NaN stays a NaN
  x = x > 89.0f ? 89.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n as a product of two normal powers, so that results in the subnormal range are rounded and not lost.
  const auto exponent =
      static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound));
  const int32_t half = exponent >> 1;
  const auto power = [](int32_t e) { return std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23); };
  return p * power(half) * power(exponent - half);
}

/// 1 / (1 + e^-x).
template <class T>
inline T sigmoid_fast(T x) {
  return T{1} / (T{1} + exp_fast(-x));
}

/// Density of N(0, 1).
template <class T>
inline T normal_pdf_fast(T x) {
  return static_cast<T>(0.3989422804014327) * exp_fast(static_cast<T>(-0.5) * x * x);
}

/// Distribution function of N(0, 1), (1 + erf(x / sqrt 2)) / 2. For float: relative error below 1e-6 for
/// x > -3, absolute error below 1e-9 left of it. With z = |x| / sqrt 2 and t = 1 / (1 + z / 2),
/// erfc(z) = e^(-z^2) * t * P(t), P interpolated at Chebyshev nodes.
template <class T>
inline T normal_cdf_fast(T x) {
  return T{0.5} * std::erfc(x * static_cast<T>(-0.7071067811865476));
}

template <>
inline float normal_cdf_fast(float x) {
  const float t = 1.0f / (1.0f + 0.35355339f * std::abs(x));
  float p = -5.9338126e-2f;
  p = p * t + 2.8597966e-1f;
  p = p * t - 4.9027604e-1f;
  p = p * t + 2.8174219e-1f;
  p = p * t - 2.9231098e-2f;
  p = p * t + 2.0380226e-1f;
  p = p * t + 2.4282409e-1f;
  p = p * t + 2.8241262e-1f;
  p = p * t + 2.8208441e-1f;
  const float tail = 0.5f * t * p * exp_fast(-0.5f * x * x);
  return x < 0 ? tail : 1.0f - tail;
}

}  // namespace moec::cpu
