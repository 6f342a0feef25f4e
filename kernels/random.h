// The counter-based generator behind every random number: a value is a function of (seed, domain, stream,
// sequence, element), so any element can be made alone, in any order, on any device.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace moec {

struct RandomBlock {
  uint32_t word[4];
};

/// The product of two words. On a GPU by its halves: nvcc adds a zero to the upper one of a whole.
MOEC_HOST_DEVICE inline uint64_t wide_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return uint64_t{__umulhi(a, b)} << 32 | a * b;
#else
  return uint64_t{a} * b;
#endif
}

/// One round of Philox on the counter words; the key moves on.
MOEC_HOST_DEVICE inline RandomBlock philox_round(const RandomBlock& counter, uint32_t& key0, uint32_t& key1) {
  const uint64_t product0 = wide_product(0xD2511F53, counter.word[0]);
  const uint64_t product1 = wide_product(0xCD9E8D57, counter.word[2]);
  const RandomBlock next = {
      {static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
       static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
  key0 += 0x9E3779B9u;
  key1 += 0xBB67AE85u;
  return next;
}

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The rounds are written
/// out so that loops over counters vectorise.
MOEC_HOST_DEVICE inline RandomBlock philox4x32(RandomBlock counter, uint64_t key) {
  auto key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  counter = philox_round(counter, key0, key1);
  return philox_round(counter, key0, key1);
}

/// What random numbers are for. Numbers of different domains are independent.
enum class RandomDomain : uint32_t { Init, Dropout, SequenceStart, Shuffle, Rounding };

/// The 128 random bits number `block` (< 2^56) of a stream. `sequence` tells the uses of one stream apart,
/// for example micro-batches.
MOEC_HOST_DEVICE inline RandomBlock random_block(uint64_t seed, RandomDomain domain, uint32_t stream,
                                                 uint32_t sequence, uint64_t block) {
  const auto high = static_cast<uint32_t>(block >> 32) | (static_cast<uint32_t>(domain) << 24);
  return philox4x32({{static_cast<uint32_t>(block), high, stream, sequence}}, seed);
}

struct NormalPair {
  double value[2];
};

/// Two independent N(0, 1) numbers from two words (Box and Muller). In f64, so that devices whose elementary
/// functions differ in the last place agree after rounding to f32 but in the rarest cases.
MOEC_HOST_DEVICE inline NormalPair normal_pair(uint32_t a, uint32_t b) {
  constexpr double kWord = 1.0 / 4294967296.0;
  const double radius = std::sqrt(-2.0 * std::log((a + 0.5) * kWord));
  const double angle = 6.283185307179586 * kWord * b;
  return {{radius * std::cos(angle), radius * std::sin(angle)}};
}

struct NormalBlock {
  double value[4];
};

/// The normal numbers 4*block .. 4*block+3 of the stream that initialises a parameter.
MOEC_HOST_DEVICE inline NormalBlock initial_normals(uint64_t seed, uint32_t stream, uint64_t block) {
  const RandomBlock bits = random_block(seed, RandomDomain::Init, stream, 0, block);
  const NormalPair first = normal_pair(bits.word[0], bits.word[1]);
  const NormalPair second = normal_pair(bits.word[2], bits.word[3]);
  return {{first.value[0], first.value[1], second.value[0], second.value[1]}};
}

/// A word is kept by dropout with probability 1 - p when it is at least this. 2^32 for p = 1 keeps none.
MOEC_HOST_DEVICE inline uint64_t dropout_threshold(double p) {
  return static_cast<uint64_t>(p * 4294967296.0 + 0.5);
}

/// The words that decide about elements 4*block .. 4*block+3 of dropout `stream` in a micro-batch.
MOEC_HOST_DEVICE inline RandomBlock dropout_block(uint64_t seed, uint32_t stream, int64_t micro_batch,
                                                  uint64_t block) {
  return random_block(seed, RandomDomain::Dropout, stream, static_cast<uint32_t>(micro_batch), block);
}

}  // namespace moec
