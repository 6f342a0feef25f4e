// f32 master weights kept as the bf16 weight that the model reads and 16 more bits.
//
// The weight is the master rounded to nearest, halves away from zero; the remainder is the master's low 16
// bits. As a signed number the remainder is what the rounding left, -2^15 <= remainder < 2^15 in units of the
// master's last place, so that the pair gives the master back exactly. (Rounding halves to even would not:
// there a half that was rounded up and one that was rounded down look the same.) A bf16 weight with remainder
// 0 is a master of the same value.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace moec {

struct SplitMaster {
  uint16_t weight;  // bits of the bf16
  uint16_t remainder;
};

MOEC_HOST_DEVICE inline SplitMaster split_master(uint32_t f32_bits) {
  return {static_cast<uint16_t>((f32_bits + 0x8000u) >> 16), static_cast<uint16_t>(f32_bits)};
}

/// Bits of the f32 master: the inverse of split_master.
MOEC_HOST_DEVICE inline uint32_t join_master(uint16_t weight, uint16_t remainder) {
  return (static_cast<uint32_t>(weight) << 16) + static_cast<uint32_t>(static_cast<int16_t>(remainder));
}

}  // namespace moec
