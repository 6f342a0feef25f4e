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
  /// What the random numbers of a call depend on, on the device.
  struct Key {
    uint64_t seed = 0;
    int64_t micro_batch = 0;
  };

  const TrainState* state = nullptr;
  uint32_t stream = 0;
  float p = 0;
  float scale_f32 = 0;
  uint64_t threshold = 0;

  Dropout() = default;
  Dropout(const TrainState* train_state, uint32_t random_stream, float probability)
      : state(train_state),
        stream(random_stream),
        p(probability),
        scale_f32(1 / (1 - probability)),
        threshold(dropout_threshold(probability)) {}

  /// May be asked for long before it is used.
  __device__ Key key() const { return {state->seed, state->micro_batch}; }

  /// What kept elements are multiplied with.
  template <class Acc>
  __device__ Acc scale() const {
    if constexpr (std::is_same_v<Acc, float>)
      return scale_f32;
    else
      return 1 / (1 - static_cast<Acc>(p));
  }

  /// Which elements of the run number `number` of a tensor are kept: element j by bit j.
  __device__ uint32_t kept_of_run(const Key& key, int64_t number) const {
    const RandomBlock random =
        dropout_block(key.seed, stream, key.micro_batch, static_cast<uint64_t>(number));
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < kDropoutRun; ++j) bits |= (random.word[j] >= threshold ? 1u : 0u) << j;
    return bits;
  }

  /// The same for the elements number `first` on.
  __device__ uint32_t kept(const Key& key, int64_t first) const {
    const auto offset = static_cast<int>(first % kDropoutRun);
    uint32_t bits = kept_of_run(key, first / kDropoutRun);
    if (offset > 0) bits = (bits | kept_of_run(key, first / kDropoutRun + 1) << kDropoutRun) >> offset;
    return bits & ((1u << kDropoutRun) - 1);
  }
  __device__ uint32_t kept(int64_t first) const { return kept(key(), first); }

  /// Applies to elements of which these are kept.
  template <class Acc>
  __device__ void apply(uint32_t bits, Acc (&values)[kDropoutRun]) const {
#pragma unroll
    for (int j = 0; j < kDropoutRun; ++j) values[j] = bits >> j & 1 ? values[j] * scale<Acc>() : Acc{0};
  }
};

}  // namespace moec::cuda
