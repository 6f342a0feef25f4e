// Dropout where another kernel applies it to what it computes.
#pragma once

#include "kernels/cuda/types.cuh"
#include "kernels/random.h"
#include "kernels/train_state.h"

namespace moec::cuda {

/// Elements that one block of the generator decides about.
constexpr int kDropoutRun = 4;

/// Inverted dropout with probability p, of nothing where there is no state. A dropped element is 0 whatever
/// it was.
struct Dropout {
  const TrainState* state = nullptr;
  uint32_t stream = 0;
  float p = 0;
  uint64_t threshold = 0;

  Dropout() = default;
  Dropout(const TrainState* train_state, uint32_t random_stream, float probability)
      : state(train_state),
        stream(random_stream),
        p(probability),
        threshold(dropout_threshold(probability)) {}

  /// Which of the elements number `first` on of a tensor are kept: element j by bit j.
  __device__ uint32_t kept(int64_t first) const {
    const auto offset = static_cast<int>(first % kDropoutRun);
    uint32_t bits = kept_of_block(first / kDropoutRun);
    if (offset > 0) bits = (bits | kept_of_block(first / kDropoutRun + 1) << kDropoutRun) >> offset;
    return bits & ((1u << kDropoutRun) - 1);
  }

  /// Applies to elements of which these are kept.
  template <class Acc>
  __device__ void apply(uint32_t bits, Acc (&values)[kDropoutRun]) const {
#pragma unroll
    for (int j = 0; j < kDropoutRun; ++j)
      values[j] = bits >> j & 1 ? values[j] * (1 / (1 - static_cast<Acc>(p))) : Acc{0};
  }

 private:
  __device__ uint32_t kept_of_block(int64_t number) const {
    const RandomBlock random =
        dropout_block(state->seed, stream, state->micro_batch, static_cast<uint64_t>(number));
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < kDropoutRun; ++j) bits |= (random.word[j] >= threshold ? 1u : 0u) << j;
    return bits;
  }
};

}  // namespace moec::cuda
