// Ranges of parameters and what AdamW keeps of them: one vector of each at a time.
#pragma once

#include "kernels/adamw_step.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/master_weight.h"
#include "kernels/stochastic_round.h"

namespace moec::cuda {

/// Elements of a gradient range that are worth a block of their own.
constexpr int64_t kPieceElements = 4096;

/// Weights that are kept as they are computed with. Like those below: loads and stores the vector number `i`.
template <class T>
struct OwnWeights {
  using Value = T;
  T* weight;

  template <int kWidth>
  __device__ Vector<T, kWidth> read(int64_t i) const {
    return load<kWidth>(weight, i);
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Vector<T, kWidth>& values) const {
    store(weight, i, values);
  }
};

/// bf16 weights and the remainders of their f32 masters.
struct SplitWeights {
  using Value = float;
  bf16* weight;
  uint16_t* remainder;

  template <int kWidth>
  __device__ Vector<float, kWidth> read(int64_t i) const {
    const auto high = load<kWidth>(weight, i);
    const auto low = load<kWidth>(remainder, i);
    Vector<float, kWidth> values;
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      values.value[j] = __uint_as_float(join_master(__bfloat16_as_ushort(high.value[j]), low.value[j]));
    return values;
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Vector<float, kWidth>& values) const {
    Vector<bf16, kWidth> high;
    Vector<uint16_t, kWidth> low;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const SplitMaster split = split_master(__float_as_uint(values.value[j]));
      high.value[j] = __ushort_as_bfloat16(split.weight);
      low.value[j] = split.remainder;
    }
    store(weight, i, high);
    store(remainder, i, low);
  }
};

/// f16 weights beside their f32 masters.
struct CopiedWeights {
  using Value = float;
  f16* weight;
  float* master;

  template <int kWidth>
  __device__ Vector<float, kWidth> read(int64_t i) const {
    return load<kWidth>(master, i);
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Vector<float, kWidth>& values) const {
    Vector<f16, kWidth> rounded;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) rounded.value[j] = to_storage<f16>(values.value[j]);
    store(master, i, values);
    store(weight, i, rounded);
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

/// `noise` rounds bf16 moments, and only those.
template <class Moment, class Acc>
__device__ Moment to_moment(Acc value, uint32_t noise) {
  if constexpr (std::is_same_v<Moment, bf16>)
    return __ushort_as_bfloat16(round_stochastically(__float_as_uint(value), noise));
  else
    return value;
}

/// What an update reads and writes besides the weights; the ranges are as long as theirs.
template <class Grad, class Moment>
struct Ranges {
  const Grad* grad;
  Moment* moment1;
  Moment* moment2;
};

/// The vector number `i` of a range, from its loads to its stores.
template <class Weights, class Grad, class Moment, int kWidth>
struct ParameterVector {
  using Acc = typename Weights::Value;

  Vector<Acc, kWidth> weight;
  Vector<Grad, kWidth> grad;
  Vector<Moment, kWidth> moment1, moment2;

  __device__ void load(const Weights& weights, const Ranges<Grad, Moment>& ranges, int64_t i) {
    weight = weights.template read<kWidth>(i);
    grad = cuda::load<kWidth>(ranges.grad, i);
    moment1 = cuda::load<kWidth>(ranges.moment1, i);
    moment2 = cuda::load<kWidth>(ranges.moment2, i);
  }

  __device__ void update(const AdamWStep<Acc>& step, const MomentNoise& noise, int64_t i) {
    RandomBlock words = {};
    if constexpr (!std::is_same_v<Moment, Acc>) words = words_of<kWidth>(noise, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      auto m1 = static_cast<Acc>(moment1.value[j]), m2 = static_cast<Acc>(moment2.value[j]);
      weight.value[j] = step.update(weight.value[j], static_cast<Acc>(grad.value[j]), m1, m2);
      moment1.value[j] = to_moment<Moment>(m1, words.word[j] & 0xffff);
      moment2.value[j] = to_moment<Moment>(m2, words.word[j] >> 16);
    }
  }

  __device__ void store(const Weights& weights, const Ranges<Grad, Moment>& ranges, int64_t i) const {
    weights.template write<kWidth>(i, weight);
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
      return CopiedWeights{param.as<f16>(), master.as<float>()};
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
