// The backward of attention for compute capability 9.0a, in two kernels; see attention_bwd.cuh for the
// formulas. Each computes the weights anew and owns what it sums, in registers: one goes through the keys of
// a tile of queries, the other through the queries of a tile of keys. So every gradient is a sum of one
// block, or of some blocks' in their order.
#pragma once

#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/hopper/attention.cuh"
#include "kernels/cuda/hopper/rotation.cuh"

namespace moec::cuda::hopper {

/// What the weights of a query and their gradients need.
struct RowStatistics {
  float lse;    // times log2(e); infinity, so that weights are 0, for queries past the end
  float delta;  // sum of dy * y
};

/// Those of 64 positions of a head.
struct alignas(16) TileStatistics {
  float lse[64], delta[64];

  __device__ void set(int i, RowStatistics row) {
    lse[i] = row.lse;
    delta[i] = row.delta;
  }
};

/// See workspace::AttentionShares.
struct KeyShares {
  int per_head, share, count;
  float4* parts;       // two per share: of the tile in which it begins, and of the one in which it ends
  uint32_t* arrivals;  // [count, 2], at the share in which a tile begins, per warpgroup: parts that are there
};

/// Gradients of one tile's side: all query heads, or all keys and values.
struct BackwardOperands {
  AttentionShape shape;
  TileOrder order;
  KeyShares shares;               // of the side of keys; the arrivals are zeroed by that of queries
  CUtensorMap queries, dy, keys;  // in boxes of queries, of dy, and of keys or values
  const bf16* dy_rows;            // [B,S,H d]
  const bf16* y;                  // [B,S,H d]
  const float* lse;               // [B,H,S]
  TileStatistics* statistics;     // [B,H,tiles], written by the side of queries, read by that of keys
  int tiles;
  bf16* dqkv;
  Rotation rotation;  // back, of the gradients of queries and keys

  __device__ TileStatistics& statistics_from(int batch, int head, int position) const {
    return statistics[(int64_t{batch} * shape.heads + head) * tiles + position / 64];
  }
  /// Where a position of a head of [B,S,H d] begins.
  __device__ int64_t output(int batch, int position, int head) const {
    return ((int64_t{batch} * shape.seq + position) * shape.heads + head) * shape.dim;
  }
  /// nullptr past the end.
  __device__ bf16* gradient(int batch, int position, int head) const {
    if (position >= shape.seq) return nullptr;
    return dqkv + ((int64_t{batch} * shape.seq + position) * shape.packed_heads() + head) * shape.dim;
  }
};

/// Rotates the head of each of a thread's two rows, which are at these positions.
template <int kDim>
__device__ __forceinline__ void rotate_rows(const Rotation& rotation, float (&sums)[kDim / 2],
                                            const int (&position)[2]) {
  const auto rotate = [&](int pair, int first, int second) {
    const uint64_t turns = rotation.turns[pair];
#pragma unroll
    for (int row = 0; row < 2; ++row)
      Rotation::rotate(Rotation::angle(turns, static_cast<uint32_t>(position[row])), sums[first + 2 * row],
                       sums[second + 2 * row]);
  };
  constexpr int kRuns = kDim / 8;  // of eight columns
  if (rotation.half) {
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
      rotate(i / 2 * 8 + fragment_col() + i % 2, i / 2 * 4 + i % 2, (i / 2 + kRuns / 2) * 4 + i % 2);
  } else {
#pragma unroll
    for (int i = 0; i < kRuns; ++i) rotate(4 * i + fragment_col() / 2, 4 * i, 4 * i + 1);
  }
}

/// A block of a side: the first warpgroup starts the copies, the others compute.
template <class Side>
__global__ void __launch_bounds__(Side::kThreads, 1)
    differentiate_hopper(const __grid_constant__ BackwardOperands operands) {
#ifdef MOEC_HOPPER_CODE
  begin_kernel();
  auto& shared = *static_cast<typename Side::Shared*>(aligned_shared());
  if (threadIdx.x == 0) {
    shared.own_ring.init(Side::kConsumers);
    shared.ring.init(Side::kConsumers);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    shrink_registers<Registers<Side::kConsumers>::kProducer>();
    if (threadIdx.x == 0) Side::produce(operands, shared);
  } else {
    grow_registers<Registers<Side::kConsumers>::kConsumer>();
    Side::consume(operands, shared);
  }
#endif
}

/// Sets the side's tensor maps, and enqueues its blocks; `query_heads` are those of a tile of queries.
template <class Side>
cudaError_t launch_side(BackwardOperands operands, const AttentionGradient<bf16>& g, int blocks,
                        int query_heads, int query_rows, int key_rows, const CudaContext& context) {
  const AttentionShape& shape = operands.shape;
  const int positions = query_rows / query_heads;
  for (const cudaError_t error :
       {map_heads(operands.queries, shape, g.qkv, shape.packed_heads(), query_heads, positions),
        map_heads(operands.dy, shape, g.dy, shape.heads, query_heads, positions),
        map_heads(operands.keys, shape, g.qkv, shape.packed_heads(), 1, key_rows)}) {
    if (error != cudaSuccess) return error;
  }
  return launch_grid(context, differentiate_hopper<Side>, dim3(static_cast<unsigned>(blocks)), Side::kThreads,
                     sizeof(typename Side::Shared) + 1024, operands);
}

/// Gradients of queries; writes the statistics too.
cudaError_t differentiate_queries(const BackwardOperands& operands, const AttentionGradient<bf16>& g,
                                  const CudaContext& context);

/// Gradients of keys and values.
cudaError_t differentiate_keys(const BackwardOperands& operands, const AttentionGradient<bf16>& g,
                               const CudaContext& context);

}  // namespace moec::cuda::hopper
