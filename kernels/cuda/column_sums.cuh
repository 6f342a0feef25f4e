// The sums of columns of few rows, which are partial sums of many, in an order that never changes.
#pragma once

#include <algorithm>
#include <span>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {

/// out[cols] = (accumulate ? out : 0) + the sum over pieces of partials[pieces, cols].
template <class Acc, class Out>
struct ColumnSum {
  const Acc* partials;
  Out* out;
  bool accumulate;
  int pieces;
  int cols;
};

/// Row y of the grid computes sum y.
template <class Acc, class Out, int kMost>
struct ColumnSums {
  ColumnSum<Acc, Out> sums[kMost];
};

/// A block adds a warp's width of columns; its warps share the pieces.
constexpr int kSumWarps = 16;

template <class Acc, class Out, int kMost>
__global__ void sum_columns_kernel(const __grid_constant__ ColumnSums<Acc, Out, kMost> batch) {
  begin_kernel();
  __shared__ Acc sums[kSumWarps][kWarp];
  const ColumnSum<Acc, Out>& job = batch.sums[blockIdx.y];
  const int col = static_cast<int>(blockIdx.x) * kWarp + threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Acc sum = 0;
  if (col < job.cols) {
#pragma unroll 8
    for (int64_t piece = warp; piece < job.pieces; piece += kSumWarps)
      sum += job.partials[piece * job.cols + col];
  }
  sums[warp][threadIdx.x % kWarp] = sum;
  __syncthreads();
  if (warp > 0 || col >= job.cols) return;
  for (int i = 1; i < kSumWarps; ++i) sum += sums[i][threadIdx.x];
  job.out[col] = to_storage<Out>((job.accumulate ? static_cast<Acc>(job.out[col]) : Acc{0}) + sum);
}

/// One launch for up to kMost sums.
template <int kMost, class Acc, class Out>
cudaError_t sum_columns(const CudaContext& context, std::span<const ColumnSum<Acc, Out>> jobs) {
  ColumnSums<Acc, Out, kMost> batch = {};
  std::ranges::copy(jobs, batch.sums);
  const int cols = std::ranges::max_element(jobs, {}, &ColumnSum<Acc, Out>::cols)->cols;
  const dim3 grid(static_cast<unsigned>(ceil_div(cols, kWarp)), static_cast<unsigned>(jobs.size()));
  return launch_grid(context, sum_columns_kernel<Acc, Out, kMost>, grid, kSumWarps * kWarp, 0, batch);
}

}  // namespace moec::cuda
