// What becomes of the sums of a linear layer before they are stored.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

enum class EpilogueKind { kNone, kForward, kBackward };

/// Of sums z, forward: y = residual + dropout(activation(z)), and z itself to `preactivation` if there is
/// one. Backward: y = z activation'(preactivation). Null pointers are left out; all matrices have the type
/// and the shape of y.
struct Epilogue {
  fb::Activation activation = fb::Activation::None;
  bool backward = false;
  void* preactivation = nullptr;
  const void* residual = nullptr;
  Dropout dropout = {};

  EpilogueKind kind() const {
    if (backward) return EpilogueKind::kBackward;
    const bool forward = activation != fb::Activation::None || preactivation || residual || dropout.state;
    return forward ? EpilogueKind::kForward : EpilogueKind::kNone;
  }
  bool empty() const { return kind() == EpilogueKind::kNone; }
};

/// Four neighbours, or the first `count` of them, at `from`, a place in a matrix of type T; `whole`: all
/// four, aligned.
template <class T>
__device__ inline Packed<T, 4> load_run(const T* from, int count, bool whole) {
  if (whole) return load_packed<4>(from, 0);
  Vector<T, 4> out = {};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < count) out.value[j] = from[j];
  return __builtin_bit_cast(Packed<T, 4>, out);
}

template <class T>
__device__ inline void store_run(T* to, int count, bool whole, const Vector<Accumulator<T>, 4>& values) {
  Vector<T, 4> out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.value[j] = to_storage<T>(values.value[j]);
  if (whole) {
    *reinterpret_cast<Vector<T, 4>*>(to) = out;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) to[j] = out.value[j];
  }
}

/// values = activation(values).
template <class T, class Acc = Accumulator<T>>
__device__ void activate(fb::Activation activation, Acc (&values)[4]) {
  const auto apply = [&](auto function) {
#pragma unroll
    for (int j = 0; j < 4; ++j) values[j] = function.template operator()<T>(values[j]);
  };
  switch (activation) {
    case fb::Activation::Silu:
      return apply(Silu());
    case fb::Activation::Gelu:
      return apply(Gelu());
    case fb::Activation::GeluTanh:
      return apply(GeluTanh());
    default:
      return;
  }
}

/// dy *= the derivative of the activation at z.
template <class T, class Acc = Accumulator<T>>
__device__ void differentiate(fb::Activation activation, Acc (&dy)[4], const Acc (&z)[4]) {
  const auto apply = [&](auto function) {
#pragma unroll
    for (int j = 0; j < 4; ++j) dy[j] = function.template operator()<T>(dy[j], z[j]);
  };
  switch (activation) {
    case fb::Activation::Silu:
      return apply(SiluBwd());
    case fb::Activation::Gelu:
      return apply(GeluBwd());
    case fb::Activation::GeluTanh:
      return apply(GeluTanhBwd());
    default:
      return;
  }
}

/// What an epilogue needs for a run of four sums beside them. It may be fetched long before they are there.
template <class T>
struct EpilogueRun {
  Packed<T, 4> operand = {};
  uint32_t kept = 0;
};

/// For the `count` sums that go to the places from `place` on; `whole` are four in a row of runs that are
/// aligned in all matrices.
template <EpilogueKind kKind, class T>
__device__ EpilogueRun<T> fetch_run(const Epilogue& epilogue, int64_t place, int count, bool whole) {
  EpilogueRun<T> run;
  if constexpr (kKind == EpilogueKind::kForward) {
    if (epilogue.residual)
      run.operand = load_run(static_cast<const T*>(epilogue.residual) + place, count, whole);
    if (epilogue.dropout.state) run.kept = epilogue.dropout.kept(place);
  } else if constexpr (kKind == EpilogueKind::kBackward) {
    run.operand = load_run(static_cast<const T*>(epilogue.preactivation) + place, count, whole);
  }
  return run;
}

/// Applies the epilogue to such sums. z is rounded to storage first, so that the result does not depend on
/// whether it was stored.
template <EpilogueKind kKind, class T>
__device__ void apply_epilogue(const Epilogue& epilogue, const EpilogueRun<T>& run, int64_t place, int count,
                               bool whole, Vector<Accumulator<T>, 4>& sums) {
  Accumulator<T> operand[4];
  unpack(run.operand, operand);
  if constexpr (kKind == EpilogueKind::kForward) {
    if (epilogue.preactivation)
      store_run(static_cast<T*>(epilogue.preactivation) + place, count, whole, sums);
    if (epilogue.activation != fb::Activation::None) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.value[j] = widen(to_storage<T>(sums.value[j]));
      activate<T>(epilogue.activation, sums.value);
    }
    if (epilogue.dropout.state) epilogue.dropout.apply(run.kept, sums.value);
    if (epilogue.residual) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.value[j] += operand[j];
    }
  } else if constexpr (kKind == EpilogueKind::kBackward) {
    differentiate<T>(epilogue.activation, sums.value, operand);
  }
}

}  // namespace moec::cuda
