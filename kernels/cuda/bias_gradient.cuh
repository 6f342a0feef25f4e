// Sums of columns over a range of rows, by one block and in a fixed order.
#pragma once

#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

/// Columns that a block sums, and threads that share out the rows of each column.
constexpr int kSumCols = 16;
constexpr int kSumLanes = 32;
constexpr int kSumThreads = kSumCols * kSumLanes;

/// Sum over the rows [begin, end) of in[.., cols] of column first + thread % kSumCols; valid in the first
/// kSumCols threads of a block of kSumCols * kLanes.
template <int kLanes, class T>
__device__ Accumulator<T> column_sum(const T* in, int64_t begin, int64_t end, int64_t cols, int64_t first) {
  using Acc = Accumulator<T>;
  constexpr int kInFlight = 1024 / kLanes;  // loads per thread, so that a block waits once for some 1024 rows
  __shared__ Acc sums[kLanes][kSumCols];
  const int place = static_cast<int>(threadIdx.x) % kSumCols, lane = static_cast<int>(threadIdx.x) / kSumCols;
  const int64_t col = first + place;
  Acc sum = 0;
  if (col < cols) {
#pragma unroll kInFlight
    for (int64_t row = begin + lane; row < end; row += kLanes) sum += widen(in[row * cols + col]);
  }
  sums[lane][place] = sum;
  for (int half = kLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) sums[lane][place] += sums[lane + half][place];
  }
  return sums[lane][place];
}

/// The same of column blockIdx.x * kSumCols + thread % kSumCols, in a block of kSumThreads.
template <class T>
__device__ Accumulator<T> column_sum(const T* in, int64_t begin, int64_t end, int64_t cols) {
  return column_sum<kSumLanes>(in, begin, end, cols, static_cast<int64_t>(blockIdx.x) * kSumCols);
}

}  // namespace moec::cuda
