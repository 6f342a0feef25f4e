// Ranges of parameters and what AdamW keeps of them: one vector of each at a time.
#pragma once

#include "kernels/adamw_step.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/master_weight.h"
#include "kernels/stochastic_round.h"

namespace moec::cuda {

/// Elements of a gradient range that are worth a block of their own.
constexpr int64_t kPieceElements = 4096;

/// Weights that are kept as they are computed with. Like those below: reads the vector number `i` as it is
/// stored, takes it apart, puts it together, and writes it.
template <class T>
struct OwnWeights {
  using Value = T;
  template <int kWidth>
  using Stored = Packed<T, kWidth>;

  T* weight;

  template <int kWidth>
  __device__ Packed<T, kWidth> read(int64_t i) const {
    return load_packed<kWidth>(weight, i);
  }
  template <int kWidth>
  __device__ static void unpack(const Packed<T, kWidth>& stored, T (&values)[kWidth]) {
    cuda::unpack(stored, values);
  }
  template <int kWidth>
  __device__ static Packed<T, kWidth> pack(const T (&values)[kWidth]) {
    return cuda::pack<T>(values);
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Packed<T, kWidth>& stored) const {
    store(weight, i, stored);
  }
};

/// bf16 weights and the remainders of their f32 masters.
struct SplitWeights {
  using Value = float;
  template <int kWidth>
  struct Stored {
    Packed<bf16, kWidth> weight;
    Packed<uint16_t, kWidth> remainder;
  };

  bf16* weight;
  uint16_t* remainder;

  template <int kWidth>
  __device__ Stored<kWidth> read(int64_t i) const {
    return {load_packed<kWidth>(weight, i), load_packed<kWidth>(remainder, i)};
  }
  template <int kWidth>
  __device__ static void unpack(const Stored<kWidth>& stored, float (&values)[kWidth]) {
    const auto high = __builtin_bit_cast(Halves<kWidth>, stored.weight);
    const auto low = __builtin_bit_cast(Halves<kWidth>, stored.remainder);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = __uint_as_float(join_master(high.value[j], low.value[j]));
  }
  template <int kWidth>
  __device__ static Stored<kWidth> pack(const float (&values)[kWidth]) {
    Halves<kWidth> high, low;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const SplitMaster split = split_master(__float_as_uint(values[j]));
      high.value[j] = split.weight;
      low.value[j] = split.remainder;
    }
    return {__builtin_bit_cast(decltype(Stored<kWidth>::weight), high),
            __builtin_bit_cast(decltype(Stored<kWidth>::remainder), low)};
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Stored<kWidth>& stored) const {
    store(weight, i, stored.weight);
    store(remainder, i, stored.remainder);
  }

 private:
  template <int kWidth>
  using Halves = Vector<uint16_t, kWidth>;
};

/// f16 weights beside their f32 masters, which alone are read.
struct CopiedWeights : OwnWeights<float> {
  f16* copy;

  template <int kWidth>
  __device__ void write(int64_t i, const Packed<float, kWidth>& stored) const {
    OwnWeights<float>::write(i, stored);
    float values[kWidth];
    unpack(stored, values);
    store(copy, i, cuda::pack<f16>(values));
  }
};

/// The words of noise for the kWidth elements, 1 or 4, of vector number `i`.
template <int kWidth>
__device__ RandomBlock words_of(const MomentNoise& noise, int64_t i) {
  if constexpr (kWidth == 4) {
    return noise.block(static_cast<uint64_t>(i));
  } else {
    static_assert(kWidth == 1);
    return {{noise.block(static_cast<uint64_t>(i / 4)).word[i % 4]}};
  }
}

/// Moments to be stored; `words` round those in bf16: the low half of each the first moment, the high half
/// the second.
template <class Moment, int kWidth, class Acc>
__device__ Packed<Moment, kWidth> pack_moments(const Acc (&values)[kWidth], const RandomBlock& words,
                                               int half) {
  if constexpr (std::is_same_v<Moment, bf16>) {
    Vector<uint16_t, kWidth> rounded;
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      rounded.value[j] =
          round_stochastically(__float_as_uint(values[j]), (words.word[j] >> 16 * half) & 0xffff);
    return __builtin_bit_cast(decltype(Packed<Moment, kWidth>()), rounded);
  } else {
    return pack<Moment>(values);
  }
}

/// What an update reads and writes besides the weights; the ranges are as long as theirs.
template <class Grad, class Moment>
struct Ranges {
  const Grad* grad;
  Moment* moment1;
  Moment* moment2;
};

/// The vector number `i` of a range as it is stored, from its loads to its stores.
template <class Weights, class Grad, class Moment, int kWidth>
struct ParameterVector {
  using Acc = typename Weights::Value;

  typename Weights::template Stored<kWidth> weight;
  Packed<Grad, kWidth> grad;
  Packed<Moment, kWidth> moment1, moment2;

  __device__ void load(const Weights& weights, const Ranges<Grad, Moment>& ranges, int64_t i) {
    weight = weights.template read<kWidth>(i);
    grad = load_packed<kWidth>(ranges.grad, i);
    moment1 = load_packed<kWidth>(ranges.moment1, i);
    moment2 = load_packed<kWidth>(ranges.moment2, i);
  }

  __device__ void update(const AdamWStep<Acc>& step, const MomentNoise& noise, int64_t i) {
    Acc w[kWidth], g[kWidth], m1[kWidth], m2[kWidth];
    Weights::unpack(weight, w);
    unpack<Grad, kWidth, Acc>(grad, g);
    unpack<Moment, kWidth, Acc>(moment1, m1);
    unpack<Moment, kWidth, Acc>(moment2, m2);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) w[j] = step.update(w[j], g[j], m1[j], m2[j]);
    weight = Weights::pack(w);
    RandomBlock words = {};
    if constexpr (!std::is_same_v<Moment, Acc>) words = words_of<kWidth>(noise, i);
    moment1 = pack_moments<Moment>(m1, words, 0);
    moment2 = pack_moments<Moment>(m2, words, 1);
  }

  __device__ void store(const Weights& weights, const Ranges<Grad, Moment>& ranges, int64_t i) const {
    weights.write(i, weight);
    cuda::store(ranges.moment1, i, moment1);
    cuda::store(ranges.moment2, i, moment2);
  }
};

/// What an adamw reads and writes.
struct AdamWOperands {
  const TensorView &param, &grad, &moment1, &moment2;
  TensorView master;  // remainders of bf16 weights, f32 masters of f16 ones, or absent

  explicit AdamWOperands(const KernelCall& call)
      : param(call.outputs[0]),
        grad(call.inputs[1]),
        moment1(call.outputs[1]),
        moment2(call.outputs[2]),
        master(call.inputs[4].present() ? call.outputs[3] : TensorView{}) {}

  /// Weights of type T.
  template <class T>
  auto weights() const {
    if constexpr (std::is_same_v<T, bf16>)
      return SplitWeights{param.as<bf16>(), master.as<uint16_t>()};
    else if constexpr (std::is_same_v<T, f16>)
      return CopiedWeights{{master.as<float>()}, param.as<f16>()};
    else
      return OwnWeights<T>{param.as<T>()};
  }
  template <class Grad, class Moment>
  Ranges<Grad, Moment> ranges() const {
    return {grad.as<const Grad>(), moment1.as<Moment>(), moment2.as<Moment>()};
  }
  /// Whether all ranges are made of whole vectors of `width` elements.
  bool whole(int width) const {
    return whole_vectors(param.elements(), width, {&param, &master, &grad, &moment1, &moment2});
  }
};

/// Returns body.template operator()<Moment>() for moments of computations in Acc.
template <class Acc, class Body>
cudaError_t with_moments(fb::DType dtype, Body&& body) {
  if constexpr (std::is_same_v<Acc, float>)
    if (dtype == fb::DType::BF16) return body.template operator()<bf16>();
  return body.template operator()<Acc>();
}

}  // namespace moec::cuda
