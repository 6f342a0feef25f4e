// What RMSNorm and LayerNorm do with the vectors of a row. RMSNorm is LayerNorm with a mean of 0 and no bias.
// The variance is of centred values: no cancellation.
#pragma once

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/types.cuh"

namespace moec::cuda {

template <class T, class Acc = Accumulator<T>>
struct Norm {
  const T* x;
  const T* addend;  // with a sum only: x + addend is normalised, and written to sum
  const T* weight;
  const T* bias;  // null where there is none
  T* sum;         // may be x or addend
  T* y;           // likewise
  Acc* mean;      // written by LayerNorm, null for RMSNorm
  Acc* rstd;
  int64_t rows;
  int cols;
  Acc share;  // 1 / cols
  Acc eps;
};

template <class T>
Norm<T> as_norm(const NormOperands& operands) {
  using Acc = Accumulator<T>;
  return {.x = operands.x.as<const T>(),
          .addend = operands.addend.as<const T>(),
          .weight = operands.weight.as<const T>(),
          .bias = operands.bias.as<const T>(),
          .sum = operands.sum.as<T>(),
          .y = operands.y.as<T>(),
          .mean = operands.mean.as<Acc>(),
          .rstd = operands.rstd.as<Acc>(),
          .rows = operands.x.rows(),
          .cols = static_cast<int>(operands.x.cols()),
          .share = 1 / static_cast<Acc>(operands.x.cols()),
          .eps = Acc{operands.eps}};
}

/// `sum` and the values, added in their order.
template <class Acc, int kWidth>
__device__ inline Acc add_values(Acc sum, const Acc (&values)[kWidth]) {
#pragma unroll
  for (const Acc value : values) sum += value;
  return sum;
}

/// `squares` and those of the centred values.
template <class Acc, int kWidth>
__device__ inline Acc add_squares(Acc squares, const Acc (&values)[kWidth], Acc mean) {
#pragma unroll
  for (const Acc value : values) squares += (value - mean) * (value - mean);
  return squares;
}

/// One over the standard deviation, for storage in T.
template <class T, class Acc = Accumulator<T>>
__device__ inline Acc inverse_deviation(Acc variance, Acc eps) {
  return inverse_root<T>(variance + eps);
}

template <class Acc, int kWidth>
__device__ inline void normalise(Acc (&values)[kWidth], Acc mean, Acc rstd, const Acc (&weights)[kWidth],
                                 const Acc (&biases)[kWidth]) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] = (values[j] - mean) * rstd * weights[j] + biases[j];
}

}  // namespace moec::cuda
