// What becomes of the sums of a linear layer before they are stored.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

/// What there is of an epilogue forward: the activation or the preactivation, or the rest, or both. The
/// former two are of runs alone that are whole, and begin at a multiple of four elements.
enum class EpilogueKind { kNone, kActivation, kResidual, kForward, kBackward };

constexpr bool activates(EpilogueKind kind) {
  return kind == EpilogueKind::kActivation || kind == EpilogueKind::kForward;
}
constexpr bool adds_residual(EpilogueKind kind) {
  return kind == EpilogueKind::kResidual || kind == EpilogueKind::kForward;
}

/// The kind that also does what this one does.
constexpr EpilogueKind general_kind(EpilogueKind kind) {
  return activates(kind) || adds_residual(kind) ? EpilogueKind::kForward : kind;
}

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
    using enum EpilogueKind;
    if (backward) return kBackward;
    const bool activates = activation != fb::Activation::None || preactivation;
    const bool adds = residual || dropout.state;
    return activates ? (adds ? kForward : kActivation) : adds ? kResidual : kNone;
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

/// An activation and its derivative; no types where there is none.
template <class ForwardT, class BackwardT>
struct ActivationPair {
  using Forward = ForwardT;
  using Backward = BackwardT;
};
using NoActivation = ActivationPair<void, void>;

/// body(pair) for the activation of an epilogue. Code for many elements goes in the body: choices between
/// them would take more time than many an activation.
template <EpilogueKind kKind, class Body>
__device__ void with_activation(const Epilogue& epilogue, Body&& body) {
  if constexpr (activates(kKind) || kKind == EpilogueKind::kBackward) {
    switch (epilogue.activation) {
      case fb::Activation::Silu:
        return body(ActivationPair<Silu, SiluBwd>());
      case fb::Activation::Gelu:
        return body(ActivationPair<Gelu, GeluBwd>());
      case fb::Activation::GeluTanh:
        return body(ActivationPair<GeluTanh, GeluTanhBwd>());
      default:
        break;
    }
  }
  body(NoActivation());
}

/// What an epilogue needs for a run of four sums beside them. It may be fetched long before they are there.
template <class T>
struct EpilogueRun {
  Packed<T, 4> operand = {};
  Dropout::Key dropout = {};
};

/// For the `count` sums that go to the places from `place` on; `whole` are four in a row of runs that are
/// aligned in all matrices.
template <EpilogueKind kKind, class T>
__device__ EpilogueRun<T> fetch_run(const Epilogue& epilogue, int64_t place, int count, bool whole) {
  EpilogueRun<T> run;
  if constexpr (adds_residual(kKind)) {
    if (epilogue.residual)
      run.operand = load_run(static_cast<const T*>(epilogue.residual) + place, count, whole);
    if (epilogue.dropout.state) run.dropout = epilogue.dropout.key();
  } else if constexpr (kKind == EpilogueKind::kBackward) {
    run.operand = load_run(static_cast<const T*>(epilogue.preactivation) + place, count, whole);
  }
  return run;
}

/// Applies the epilogue with its Activation to such sums. z is rounded to storage first, so that the result
/// does not depend on whether it was stored.
template <EpilogueKind kKind, class Activation, class T>
__device__ void apply_epilogue(const Epilogue& epilogue, const EpilogueRun<T>& run, int64_t place, int count,
                               bool whole, Vector<Accumulator<T>, 4>& sums) {
  Accumulator<T> operand[4];
  unpack(run.operand, operand);
  if constexpr (activates(kKind)) {
    if (epilogue.preactivation)
      store_run(static_cast<T*>(epilogue.preactivation) + place, count, whole, sums);
    if constexpr (!std::is_same_v<Activation, NoActivation>) {
      constexpr typename Activation::Forward kActivate;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sums.value[j] = kActivate.template operator()<T>(widen(to_storage<T>(sums.value[j])));
    }
  }
  if constexpr (adds_residual(kKind)) {
    const Dropout& dropout = epilogue.dropout;
    if (dropout.state) {
      const uint32_t kept = kKind == EpilogueKind::kResidual
                                ? dropout.kept_of_run(run.dropout, place / kDropoutRun)
                                : dropout.kept(run.dropout, place);
      dropout.apply(kept, sums.value);
    }
    if (epilogue.residual) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.value[j] += operand[j];
    }
  }
  if constexpr (kKind == EpilogueKind::kBackward && !std::is_same_v<Activation, NoActivation>) {
    constexpr typename Activation::Backward kDifferentiate;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sums.value[j] = kDifferentiate.template operator()<T>(sums.value[j], operand[j]);
  }
}

}  // namespace moec::cuda
