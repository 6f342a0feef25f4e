// Element types of the CPU kernels: how they are stored, and the type they are computed in.
#pragma once

#include <bit>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "kernels/kernel.h"

namespace moec::cpu {

/// bfloat16 storage; arithmetic is in float. Rounds to nearest even, keeps NaN a NaN.
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

/// The type arithmetic on T is done in, and the type of statistics, losses and router values.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Calls body.template operator()<T>() with the storage type of `dtype`.
template <class Body>
void dispatch(fb::DType dtype, Body&& body) {
  switch (dtype) {
    case fb::DType::F32:
      return body.template operator()<float>();
    case fb::DType::F64:
      return body.template operator()<double>();
    case fb::DType::BF16:
      return body.template operator()<bf16>();
    default:
      throw std::logic_error("CPU kernels store f32, f64 and bf16");
  }
}

/// The same for statistics, losses and router values, which are stored in an accumulation type: f32 or f64.
template <class Body>
void dispatch_accumulator(fb::DType dtype, Body&& body) {
  if (dtype == fb::DType::F64) return body.template operator()<double>();
  if (dtype == fb::DType::F32) return body.template operator()<float>();
  throw std::logic_error("statistics, losses and router values are f32 or f64");
}

}  // namespace moec::cpu
