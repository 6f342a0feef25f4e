// Reducing rows to columns: partial sums of pieces of the rows, then the sum over the pieces in order.
#pragma once

#include "kernels/cuda/reduce.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {

/// Equal pieces of the rows (the last one shorter).
struct RowPieces {
  int64_t count;
  int64_t rows;  // of a piece
};

/// As many pieces as partial sums of type Acc fit in the workspace of kColumnPartials sums of f64.
template <class Acc>
RowPieces row_pieces(int64_t rows) {
  const int64_t most = kColumnPartials * static_cast<int64_t>(sizeof(double) / sizeof(Acc));
  const int64_t piece_rows = std::max<int64_t>(1, ceil_div(rows, most));
  return {ceil_div(rows, piece_rows), piece_rows};
}

/// out[cols] = (accumulate ? out : 0) + the sum over pieces of partials[pieces, cols].
template <class Acc, class Out>
struct ColumnSum {
  const Acc* partials;
  Out* out;
  bool accumulate;
};

/// A block adds a warp's width of columns; its warps share the pieces.
constexpr int kSumWarps = 16;

template <class Acc, class Out>
__global__ void sum_columns_kernel(ColumnSum<Acc, Out> first, ColumnSum<Acc, Out> second, int pieces,
                                   int64_t cols) {
  begin_kernel();
  __shared__ Acc sums[kSumWarps][kWarp];
  const int64_t column_blocks = ceil_div(cols, kWarp);
  const ColumnSum<Acc, Out> job = blockIdx.x < column_blocks ? first : second;
  const int64_t col = blockIdx.x % column_blocks * kWarp + threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  Acc sum = 0;
  if (col < cols) {
#pragma unroll 8
    for (int piece = warp; piece < pieces; piece += kSumWarps) sum += job.partials[piece * cols + col];
  }
  sums[warp][threadIdx.x % kWarp] = sum;
  __syncthreads();
  if (warp > 0 || col >= cols) return;
  for (int i = 1; i < kSumWarps; ++i) sum += sums[i][threadIdx.x];
  job.out[col] = to_storage<Out>((job.accumulate ? static_cast<Acc>(job.out[col]) : Acc{0}) + sum);
}

/// One launch for both sums; the second has a null `out` where there is none.
template <class Acc, class Out>
cudaError_t sum_columns(const CudaContext& context, ColumnSum<Acc, Out> first, ColumnSum<Acc, Out> second,
                        int64_t pieces, int64_t cols) {
  const int64_t blocks = ceil_div(cols, kWarp) * (second.out ? 2 : 1);
  return launch(context, sum_columns_kernel<Acc, Out>, blocks, kSumWarps * kWarp, first, second,
                static_cast<int>(pieces), cols);
}

}  // namespace moec::cuda
