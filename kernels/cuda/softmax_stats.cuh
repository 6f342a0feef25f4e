// The maximum of a row and the sum of its exponentials, in one pass.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {

template <class Acc>
struct SoftmaxStats {
  Acc max;  // largest element
  Acc sum;  // of exp(x - max)
};

template <class Acc>
__device__ inline SoftmaxStats<Acc> shuffle_xor(SoftmaxStats<Acc> stats, int mask) {
  return {shuffle_xor(stats.max, mask), shuffle_xor(stats.sum, mask)};
}

/// The statistics of two parts of a row of type T together. Exactly commutative: all threads get the same
/// bits.
template <class T, class Acc = Accumulator<T>>
struct MergeStats {
  __device__ SoftmaxStats<Acc> operator()(SoftmaxStats<Acc> a, SoftmaxStats<Acc> b) const {
    const bool a_is_larger = a.max >= b.max;
    const SoftmaxStats<Acc> large = a_is_larger ? a : b, small = a_is_larger ? b : a;
    return {large.max, large.sum + small.sum * exponential<T>(small.max - large.max)};
  }
};

/// Of the first `cols` elements of a row of whole vectors, for all threads of the group. -inf counts as
/// probability zero; a NaN or +inf makes the sum NaN.
template <int kWidth, int kGroup, class T, class Acc = Accumulator<T>>
__device__ SoftmaxStats<Acc> softmax_stats_of_first(const T* x, int cols) {
  constexpr Acc kLowest = std::numeric_limits<Acc>::lowest();
  SoftmaxStats<Acc> stats = {kLowest, 0};
#pragma unroll 4
  for (int i = group_lane<kGroup>(); i < (cols + kWidth - 1) / kWidth; i += kGroup) {
    const auto v = load<kWidth>(x, i);
    Acc max = stats.max;
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      if (i * kWidth + j < cols) max = std::fmax(max, static_cast<Acc>(v.value[j]));
    Acc sum = stats.sum * exponential<T>(stats.max - max);
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      if (i * kWidth + j < cols) sum += exponential<T>(static_cast<Acc>(v.value[j]) - max);
    stats = {max, sum};
  }
  return group_reduce<kGroup>(stats, MergeStats<T>{});
}

/// Takes in a vector of a row.
template <int kWidth, class T, class Acc>
__device__ void add_to_stats(SoftmaxStats<Acc>& stats, const Vector<T, kWidth>& v) {
  Acc max = stats.max;
#pragma unroll
  for (const T value : v.value) max = std::fmax(max, static_cast<Acc>(value));
  Acc sum = stats.sum * exponential<T>(stats.max - max);
#pragma unroll
  for (const T value : v.value) sum += exponential<T>(static_cast<Acc>(value) - max);
  stats = {max, sum};
}

/// Of a row of `vectors` vectors, for all threads of the group. -inf counts as probability zero; a NaN or
/// +inf makes the sum NaN.
template <int kWidth, int kGroup, class T, class Acc = Accumulator<T>>
__device__ SoftmaxStats<Acc> softmax_stats(const T* x, int vectors) {
  SoftmaxStats<Acc> stats = {std::numeric_limits<Acc>::lowest(), 0};
#pragma unroll 4
  for (int i = group_lane<kGroup>(); i < vectors; i += kGroup) add_to_stats(stats, load<kWidth>(x, i));
  return group_reduce<kGroup>(stats, MergeStats<T>{});
}

}  // namespace moec::cuda
