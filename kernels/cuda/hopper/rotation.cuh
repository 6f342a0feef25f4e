// The rotation of heads by their positions (RoPE) where their elements lie in registers.
#pragma once

#include <cmath>

#include "kernels/kernel.h"

namespace moec::cuda::hopper {

/// Rotates pairs of elements of heads of 64 or 128 elements, in f32 for results in bf16.
struct Rotation {
  static constexpr int kMostPairs = 64;

  /// Of a pair from one position to the next, in 2^-64 of a full turn: what a product with a position
  /// overflows by are full turns.
  uint64_t turns[kMostPairs] = {};
  int head_dim = 0;   // 0: nothing is rotated
  bool half = false;  // the elements of a pair are half a head apart, else neighbours

  /// Nothing is rotated.
  Rotation() = default;
  /// direction -1 rotates back.
  Rotation(const fb::RopeT& rope, int direction)
      : head_dim(static_cast<int>(rope.head_dim)), half(rope.style == fb::RopeStyle::Half) {
    const double dim = head_dim, base = rope.base * std::pow(rope.ntk_alpha, dim / (dim - 2));
    for (int pair = 0; pair < head_dim / 2; ++pair) {
      constexpr double kTwoPi = 6.283185307179586;
      const double step = std::pow(base, -2 * pair / dim) / kTwoPi;
      turns[pair] = static_cast<uint64_t>(std::ldexp(step - std::floor(step), 64));
      if (direction < 0) turns[pair] = -turns[pair];
    }
  }

  static bool supports(const fb::RopeT& rope) { return rope.head_dim == 64 || rope.head_dim == 128; }

  /// Cosine and sine of the angle of a pair of these turns.
  __device__ static float2 angle(uint64_t turns, uint32_t position) {
    const auto turn = static_cast<uint32_t>(turns * position >> 32);
    // From -1/2 to 1/2: the upper bits, the first flipped, as those of a number from 1 to 2.
    const float part = __uint_as_float((turn >> 9 ^ 0x400000u) | 0x3f800000u) - 1.5f;
    float2 result;
    __sincosf(part * 6.2831853f, &result.y, &result.x);
    return result;
  }
  __device__ static void rotate(float2 angle, float& first, float& second) {
    const float x1 = first, x2 = second;
    first = x1 * angle.x - x2 * angle.y;
    second = x1 * angle.y + x2 * angle.x;
  }
};

}  // namespace moec::cuda::hopper
