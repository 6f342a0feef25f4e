// What becomes of the sums of a linear layer before they are stored.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

/// Of sums z, forward: y = residual + dropout(activation(z)), and z itself to `preactivation` if there is
/// one. Backward: y = z activation'(preactivation). Null pointers are left out; all matrices have the type
/// and the shape of y.
struct Epilogue {
  fb::Activation activation = fb::Activation::None;
  bool backward = false;
  void* preactivation = nullptr;
  const void* residual = nullptr;
  Dropout dropout = {};

  __host__ __device__ bool empty() const { return !backward && !changes() && !preactivation; }
  /// Whether a forward y differs from z.
  __host__ __device__ bool changes() const {
    return activation != fb::Activation::None || residual || dropout.state;
  }
};

/// Four neighbours, or the first `count` of them, at `from`, a place in a matrix of type T.
template <class T>
__device__ inline Vector<Accumulator<T>, 4> load_run(const T* from, int count, bool whole) {
  Vector<T, 4> stored = {};
  if (whole) {
    stored = *reinterpret_cast<const Vector<T, 4>*>(from);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) stored.value[j] = from[j];
  }
  Vector<Accumulator<T>, 4> out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.value[j] = widen(stored.value[j]);
  return out;
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

template <class T, class Acc = Accumulator<T>>
__device__ Acc activate(fb::Activation activation, Acc z) {
  switch (activation) {
    case fb::Activation::Silu:
      return Silu().template operator()<T>(z);
    case fb::Activation::Gelu:
      return Gelu().template operator()<T>(z);
    case fb::Activation::GeluTanh:
      return GeluTanh().template operator()<T>(z);
    default:
      return z;
  }
}

/// dy times the derivative at z.
template <class T, class Acc = Accumulator<T>>
__device__ Acc differentiate(fb::Activation activation, Acc dy, Acc z) {
  switch (activation) {
    case fb::Activation::Silu:
      return SiluBwd().template operator()<T>(dy, z);
    case fb::Activation::Gelu:
      return GeluBwd().template operator()<T>(dy, z);
    case fb::Activation::GeluTanh:
      return GeluTanhBwd().template operator()<T>(dy, z);
    default:
      return dy;
  }
}

/// Applies the epilogue to the `count` sums that go to the places from `place` on; `whole` are four in a row
/// of 16-byte runs in all matrices. z is rounded to storage first, so that the result does not depend on
/// whether it was stored.
template <class T>
__device__ void apply_epilogue(const Epilogue& epilogue, int64_t place, int count, bool whole,
                               Vector<Accumulator<T>, 4>& sums) {
  if (epilogue.backward) {
    const auto z = load_run(static_cast<const T*>(epilogue.preactivation) + place, count, whole);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sums.value[j] = differentiate<T>(epilogue.activation, sums.value[j], z.value[j]);
    return;
  }
  if (epilogue.preactivation) store_run(static_cast<T*>(epilogue.preactivation) + place, count, whole, sums);
  if (epilogue.activation != fb::Activation::None) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sums.value[j] = activate<T>(epilogue.activation, widen(to_storage<T>(sums.value[j])));
  }
  if (epilogue.dropout.state) {
    if (place % kDropoutRun == 0) {
      epilogue.dropout.apply_run(place, sums.value);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.value[j] = epilogue.dropout.apply(place + j, sums.value[j]);
    }
  }
  if (epilogue.residual) {
    const auto residual = load_run(static_cast<const T*>(epilogue.residual) + place, count, whole);
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.value[j] += residual.value[j];
  }
}

}  // namespace moec::cuda
