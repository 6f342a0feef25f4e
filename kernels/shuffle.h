// Which sequence of the data comes when: a permutation that is computed, not stored.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/random.h"
#include "kernels/train_state.h"
#include "ops_generated.h"

namespace moec {

/// Element `index` of the permutation of [0, n) that `seed` and `epoch` decide; 0 <= index < n <= 2^62. A
/// Feistel network over the next power of two, applied again while the result lies outside of [0, n) ("cycle
/// walking", Black and Rogaway 2002), fewer than two rounds on average.
MOEC_HOST_DEVICE inline uint64_t shuffled_index(uint64_t seed, uint32_t epoch, uint64_t n, uint64_t index) {
  uint32_t bits = 0;
  while ((uint64_t{1} << bits) < n) ++bits;
  const uint32_t low_bits = bits / 2;
  const uint64_t low_mask = (uint64_t{1} << low_bits) - 1;
  const uint64_t high_mask = (uint64_t{1} << (bits - low_bits)) - 1;
  uint64_t high = index >> low_bits, low = index & low_mask;
  do {
    for (uint32_t round = 0; round < 4; ++round) {
      high ^= random_block(seed, RandomDomain::Shuffle, 2 * round, epoch, low).word[0] & high_mask;
      low ^= random_block(seed, RandomDomain::Shuffle, 2 * round + 1, epoch, high).word[0] & low_mask;
    }
  } while ((high << low_bits | low) >= n);
  return high << low_bits | low;
}

/// First token of the sequence that starts at random: uniform in [0, window_tokens - seq_len - 1], so that
/// seq_len tokens and their targets fit. `sequence` counts the sequences of the run.
MOEC_HOST_DEVICE inline int64_t random_start(uint64_t seed, uint64_t sequence, int64_t window_tokens,
                                             int64_t seq_len) {
  const RandomBlock block = random_block(seed, RandomDomain::SequenceStart, 0, 0, sequence);
  const uint64_t word = uint64_t{block.word[1]} << 32 | block.word[0];
  return static_cast<int64_t>(word % static_cast<uint64_t>(window_tokens - seq_len));
}

/// First token of sequence number `sequence` when the window is cut into sequences of seq_len tokens without
/// overlap, each used once per epoch in shuffled order.
MOEC_HOST_DEVICE inline int64_t epoch_start(uint64_t seed, uint64_t sequence, int64_t window_tokens,
                                            int64_t seq_len) {
  const auto n = static_cast<uint64_t>((window_tokens - 1) / seq_len);
  const uint64_t index = shuffled_index(seed, static_cast<uint32_t>(sequence / n), n, sequence % n);
  return static_cast<int64_t>(index) * seq_len;
}

/// The same without shuffling.
MOEC_HOST_DEVICE inline int64_t sequential_start(uint64_t sequence, int64_t window_tokens, int64_t seq_len) {
  const auto n = static_cast<uint64_t>((window_tokens - 1) / seq_len);
  return static_cast<int64_t>(sequence % n) * seq_len;
}

/// First token in the window of sequence `b` of the batch that comes next in training or in evaluation.
MOEC_HOST_DEVICE inline int64_t sequence_start(const TrainState& state, fb::Sampling sampling, bool evaluate,
                                               int64_t batch, int64_t seq_len, int64_t b) {
  const auto sequence = static_cast<uint64_t>((evaluate ? state.eval_batch : state.micro_batch) * batch + b);
  switch (sampling) {
    case fb::Sampling::RandomOffset:
      return random_start(state.seed, sequence, state.window_tokens, seq_len);
    case fb::Sampling::Epoch:
      return epoch_start(state.seed, sequence, state.window_tokens, seq_len);
    case fb::Sampling::Sequential:
      return sequential_start(sequence, state.window_tokens, seq_len);
  }
  return 0;
}

}  // namespace moec
