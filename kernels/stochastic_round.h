// Rounding to bf16 that is right on average: moments that change by less than half of their last place still
// follow their mean.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace moec {

/// Bits of the bf16 below or above an f32 in magnitude; the one above with a probability that is the f32's
/// distance from the one below, so that the mean is the f32. `noise`: 16 random bits. Infinities stay
/// infinite, NaNs stay NaNs.
MOEC_HOST_DEVICE inline uint16_t round_stochastically(uint32_t f32_bits, uint32_t noise) {
  const bool nan = std::isnan(std::bit_cast<float>(f32_bits));
  return static_cast<uint16_t>((nan ? f32_bits | 0x400000u : f32_bits + noise) >> 16);
}

}  // namespace moec
