// What follows a product kRows whose last tiles are split along depth (Tail in grouped.cuh): the parts are
// added.
#pragma once

#include "kernels/cuda/hopper/grouped.cuh"

namespace moec::cuda::hopper {

/// Runs of 4 sums of a unit, and the blocks that add those of a tile.
constexpr int kUnitRuns = Tile::kBlocks * Tile::kM * Tile::kN / 4;
constexpr int kBlocksOfTile = 16;

/// Where a product of this depth puts the sums of its tail; nullptr where it cannot have one.
inline float4* tail_parts(int64_t depth, const CudaContext& context) {
  const bool fits = context.cublas_workspace_bytes >= size_t{kClusters} * kUnitRuns * sizeof(float4);
  return fits && most_parts(static_cast<int>(depth)) > 1 ? static_cast<float4*>(context.cublas_workspace)
                                                         : nullptr;
}

/// Rows of c, bf16 [.., problem.cols], that are in the tail: the parts are added in order.
static __global__ void __launch_bounds__(kThreads)
    add_parts(const float4* parts, const GroupedProblem problem, bf16* c) {
#ifdef MOEC_HOPPER_CODE
  begin_kernel();
  const Tail tail = find_tail(problem);
  const int number = static_cast<int>(blockIdx.x) / kBlocksOfTile;
  if (number >= tail.tiles) return;
  const TilePlace tile = Tiles<Grouped::kRows>::find(problem, tail.begin + number);
  parts += int64_t{number} * tail.parts * kUnitRuns;
  const auto first = static_cast<int>(blockIdx.x % kBlocksOfTile * kThreads + threadIdx.x);
#pragma unroll
  for (int run = first; run < kUnitRuns; run += kBlocksOfTile * kThreads) {
    // A run is of two columns in a row, and the same 8 rows below; see multiply().
    constexpr int kGroupRuns = kWarpgroup * Tile::kN / 8;
    const int thread = run % kWarpgroup;
    const int row = tile.row + run / kGroupRuns * kGroupRows + thread / 32 * kPanelRows + thread % 32 / 4;
    const int col = tile.col + run % kGroupRuns / kWarpgroup * 8 + thread % 4 * 2;
    if (row >= tile.row_end || col >= problem.cols) continue;
    float4 sum = parts[run];
    for (int part = 1; part < tail.parts; ++part) {
      const float4 more = parts[part * kUnitRuns + run];
      sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
    }
    bf16* to = c + int64_t{row} * problem.cols + col;
    *reinterpret_cast<uint32_t*>(to) = pack(sum.x, sum.y);
    if (row + 8 < tile.row_end) *reinterpret_cast<uint32_t*>(to + 8 * problem.cols) = pack(sum.z, sum.w);
  }
#endif
}

/// Enqueues add_parts() for the most tiles that a tail has.
inline cudaError_t add_tail(const float4* parts, const GroupedProblem& problem, bf16* c,
                            const CudaContext& context) {
  return launch(context, add_parts, kClusters / 2 * kBlocksOfTile, kThreads, parts, problem, c);
}

}  // namespace moec::cuda::hopper
