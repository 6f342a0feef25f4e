// The 16-bit floating-point types as the host stores them; arithmetic is in float.
#pragma once

#include <bit>
#include <cstdint>

namespace moec {

/// bfloat16. Rounds to nearest even, keeps NaN a NaN.
struct bf16 {
  uint16_t bits;

  bf16() = default;
  bf16(float value) {  // NOLINT: converts by design, like the built-in types
    const auto u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = u + 0x7fff + ((u >> 16) & 1);
    bits = static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }  // NOLINT
};

/// IEEE half precision. Rounds to nearest even; what is 65,520 or more in magnitude becomes infinite.
struct f16 {
  _Float16 value;

  f16() = default;
  f16(float from) : value(static_cast<_Float16>(from)) {}       // NOLINT: as above
  operator float() const { return static_cast<float>(value); }  // NOLINT
};

static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2);

}  // namespace moec
