// Attention in f32, and its gradient, over sequences so short that one block holds all positions of a head:
// every operand is read once, and a pass is one launch. The tensor cores multiply floats as sums of two TF32
// numbers (see tf32_tile.cuh). For devices of compute capability 9.0 and later, as it needs up to 105 KiB of
// shared memory. See attention_short_bf16.cu for bf16.
#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/tf32_tile.cuh"

namespace moec::cuda {
namespace {

/// Positions that a block holds, and threads: eight warps in four rows of 16 positions and two halves of the
/// columns of a product.
constexpr int kPositions = 64, kBlockThreads = 256;
constexpr int kRowWarps = 4, kHalves = 2;
constexpr int kWeightStride = kPositions + 4;

__device__ inline int warp_row() { return static_cast<int>(threadIdx.x) / 32 % kRowWarps * 16; }
__device__ inline int warp_half() { return static_cast<int>(threadIdx.x) / 32 / kRowWarps; }
/// Row of the upper sums of a thread, in its warp's 16, and its first column, in eight.
__device__ inline int lane_row() { return static_cast<int>(threadIdx.x) % 32 / 4; }
__device__ inline int lane_col() { return static_cast<int>(threadIdx.x) % 4 * 2; }

/// sums[t] = 16 rows of a from `row` on times the columns col + 8 t to col + 8 t + 7 of b, kDepth deep; a and
/// b are tiles of the given strides, along depth unless depth-major.
template <bool kDepthMajorA, bool kDepthMajorB, int kDepth, int kTiles>
__device__ void multiply(const float* a, int stride_a, int row, const float* b, int stride_b, int col,
                         float (&sums)[kTiles][4]) {
  float corrections[kTiles][4] = {};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[t][i] = 0;
  }
#pragma unroll
  for (int k = 0; k < kDepth; k += 8) {
    float values[4];
    SplitFragment<4> left;
    load_a<kDepthMajorA>(values, a, stride_a, row, k);
#pragma unroll
    for (int i = 0; i < 4; ++i) left.split(i, values[i]);
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      SplitFragment<4> right;
      load_b<kDepthMajorB>(values, b, stride_b, col + t * 8, k);
#pragma unroll
      for (int i = 0; i < 4; ++i) right.split(i, values[i]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#if __CUDA_ARCH__ >= 800
        const uint32_t *big = right.big + j * 2, *small = right.small + j * 2;
        multiply_add_tf32(sums[t + j], left.big, big[0], big[1]);
        multiply_add_tf32(corrections[t + j], left.small, big[0], big[1]);
        multiply_add_tf32(corrections[t + j], left.big, small[0], small[1]);
#endif
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[t][i] += corrections[t][i];
  }
}

/// Writes a warp's sums to a tile of weights, from (row, col) on.
template <int kTiles>
__device__ void store_weights(const float (&sums)[kTiles][4], float* tile, int row, int col) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    float* to = tile + (row + lane_row()) * kWeightStride + col + t * 8 + lane_col();
    store(to, 0, Vector<float, 2>{sums[t][0], sums[t][1]});
    store(to + 8 * kWeightStride, 0, Vector<float, 2>{sums[t][2], sums[t][3]});
  }
}

/// The same to a head of an operand, rows times factor[0] and factor[1].
template <int kTiles>
__device__ void store_head(const Result<float>& head, const float (&sums)[kTiles][4], int row, int col,
                           float upper, float lower) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int to_col = col + t * 8 + lane_col();
    head.store(row + lane_row(), to_col, Vector<float, 2>{sums[t][0] * upper, sums[t][1] * upper});
    head.store(row + lane_row() + 8, to_col, Vector<float, 2>{sums[t][2] * lower, sums[t][3] * lower});
  }
}

/// The sums of a thread's two rows over the columns of both halves of the warps, for all that hold a part.
/// `op` combines; `shared` [kHalves][kPositions] is free before and in use until the block next synchronises.
template <class Op>
__device__ void combine_rows(float (&values)[2], float (*shared)[kPositions], Op op) {
#pragma unroll
  for (float& value : values) value = lanes_reduce<4>(value, op);
  const int row = warp_row() + lane_row();
  if (threadIdx.x % 4 == 0) {
    shared[warp_half()][row] = values[0];
    shared[warp_half()][row + 8] = values[1];
  }
  __syncthreads();
  values[0] = op(shared[0][row], shared[1][row]);
  values[1] = op(shared[0][row + 8], shared[1][row + 8]);
}

constexpr int kScoreTiles = kPositions / kHalves / 8;

/// Position of the key of a thread's sum [t][i], and whether a query of its rows sees it.
__device__ inline int key_of(int t, int i) {
  return warp_half() * (kPositions / kHalves) + t * 8 + lane_col() + i % 2;
}
__device__ inline int query_of(int i) { return warp_row() + lane_row() + i / 2 * 8; }
__device__ inline bool visible(int t, int i, int seq) {
  return key_of(t, i) <= query_of(i) && query_of(i) < seq;
}

template <int kDim>
struct ShortForward {
  using Tile = HeadTile<float, kPositions, kDim>;
  static constexpr int kOutTiles = kDim / kHalves / 8;

  struct Shared {
    alignas(16) float queries[Tile::kElements], keys[Tile::kElements], values[Tile::kElements];
    alignas(16) float weights[kPositions * kWeightStride];
    float max[kHalves][kPositions], sum[kHalves][kPositions];
  };
};

struct ShortOperands {
  AttentionShape shape;
  const float* qkv;
  float* y;
  float* lse;  // [B,H,S]
};

/// A block per query head of a sequence.
template <int kDim>
__global__ void __launch_bounds__(kBlockThreads) attend_short(const ShortOperands operands) {
  begin_kernel();
  using Forward = ShortForward<kDim>;
  using Tile = typename Forward::Tile;
  auto& shared = *static_cast<typename Forward::Shared*>(dynamic_shared());
  const AttentionShape& shape = operands.shape;
  const int batch = static_cast<int>(blockIdx.x) / shape.heads,
            head = static_cast<int>(blockIdx.x) % shape.heads;
  const auto packed = [&](int number) {
    return read_head(shape, operands.qkv, shape.packed_heads(), batch, number);
  };
  const int kv_head = shape.heads + head / shape.group();
  Tile::template copy_async<kBlockThreads>(packed(head), 0, shared.queries);
  Tile::template copy_async<kBlockThreads>(packed(kv_head), 0, shared.keys);
  commit_copies();
  Tile::template copy_async<kBlockThreads>(packed(kv_head + shape.kv_heads), 0, shared.values);
  commit_copies();
  wait_copies<1>();
  __syncthreads();

  float scores[kScoreTiles][4];
  multiply<false, false, kDim>(shared.queries, Tile::kStride, warp_row(), shared.keys, Tile::kStride,
                               warp_half() * (kPositions / kHalves), scores);
  const auto scale = static_cast<float>(shape.scale());
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
  for (int t = 0; t < kScoreTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[t][i] = visible(t, i, shape.seq) ? scores[t][i] * scale : -INFINITY;
      max[i / 2] = fmaxf(max[i / 2], scores[t][i]);
    }
  }
  combine_rows(max, shared.max, Larger());
#pragma unroll
  for (int t = 0; t < kScoreTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[t][i] = query_of(i) < shape.seq ? std::exp(scores[t][i] - max[i / 2]) : 0.0f;
      sum[i / 2] += scores[t][i];
    }
  }
  store_weights(scores, shared.weights, warp_row(), warp_half() * (kPositions / kHalves));
  wait_copies<0>();
  combine_rows(sum, shared.sum, Sum());

  float out[Forward::kOutTiles][4];
  const int col = warp_half() * (kDim / kHalves);
  multiply<false, true, kPositions>(shared.weights, kWeightStride, warp_row(), shared.values, Tile::kStride,
                                    col, out);
  store_head(write_head(shape, operands.y, shape.heads, batch, head), out, warp_row(), col, 1 / sum[0],
             1 / sum[1]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = query_of(half * 2);
    if (threadIdx.x % 4 == 0 && warp_half() == 0 && query < shape.seq)
      operands.lse[int64_t{blockIdx.x} * shape.seq + query] = max[half] + std::log(sum[half]);
  }
}

template <int kDim>
struct ShortBackward {
  using Tile = HeadTile<float, kPositions, kDim>;
  static constexpr int kOutTiles = kDim / kHalves / 8;

  struct Shared {
    alignas(16) float queries[Tile::kElements], keys[Tile::kElements], values[Tile::kElements],
        dy[Tile::kElements];
    alignas(16) float weights[kPositions * kWeightStride], dscores[kPositions * kWeightStride];
    float delta[kHalves][kPositions];
  };

  /// Writes weights and dscores [query][key] of the head whose queries and dy are in shared memory; row_lse
  /// is of the thread's two queries. delta, the sums of dy * y, are those of weights * dweights, too.
  __device__ static void differentiate(const AttentionShape& shape, const float (&row_lse)[2],
                                       Shared& shared) {
    const int keys = warp_half() * (kPositions / kHalves);
    float weights[kScoreTiles][4], dweights[kScoreTiles][4];
    multiply<false, false, kDim>(shared.queries, Tile::kStride, warp_row(), shared.keys, Tile::kStride, keys,
                                 weights);
    multiply<false, false, kDim>(shared.dy, Tile::kStride, warp_row(), shared.values, Tile::kStride, keys,
                                 dweights);
    const auto scale = static_cast<float>(shape.scale());
    float delta[2] = {};
#pragma unroll
    for (int t = 0; t < kScoreTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[t][i] = visible(t, i, shape.seq) ? std::exp(weights[t][i] * scale - row_lse[i / 2]) : 0.0f;
        delta[i / 2] += weights[t][i] * dweights[t][i];
      }
    }
    combine_rows(delta, shared.delta, Sum());
#pragma unroll
    for (int t = 0; t < kScoreTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) dweights[t][i] = weights[t][i] * (dweights[t][i] - delta[i / 2]) * scale;
    }
    store_weights(weights, shared.weights, warp_row(), keys);
    store_weights(dweights, shared.dscores, warp_row(), keys);
  }
};

/// A block per key/value head of a sequence, which visits the query heads of its group in order.
template <int kDim>
__global__ void __launch_bounds__(kBlockThreads) differentiate_short(const AttentionGradient<float> g) {
  begin_kernel();
  using Backward = ShortBackward<kDim>;
  using Tile = typename Backward::Tile;
  auto& shared = *static_cast<typename Backward::Shared*>(dynamic_shared());
  const AttentionShape& shape = g.shape;
  const int batch = static_cast<int>(blockIdx.x) / shape.kv_heads,
            kv_head = static_cast<int>(blockIdx.x) % shape.kv_heads;
  const int col = warp_half() * (kDim / kHalves), row = warp_row();
  Tile::template copy_async<kBlockThreads>(g.packed(batch, g.key_head(kv_head)), 0, shared.keys);
  Tile::template copy_async<kBlockThreads>(g.packed(batch, g.value_head(kv_head)), 0, shared.values);

  float dkeys[Backward::kOutTiles][4] = {}, dvalues[Backward::kOutTiles][4] = {};
  const auto add_product = [&](const float* weights, const float* rows, float(&to)[Backward::kOutTiles][4]) {
    float part[Backward::kOutTiles][4];
    multiply<true, true, kPositions>(weights, kWeightStride, row, rows, Tile::kStride, col, part);
#pragma unroll
    for (int t = 0; t < Backward::kOutTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[t][i] += part[t][i];
    }
  };
  for (int head = kv_head * shape.group(); head < (kv_head + 1) * shape.group(); ++head) {
    __syncthreads();  // the tiles of the previous head are no longer needed
    Tile::template copy_async<kBlockThreads>(g.packed(batch, head), 0, shared.queries);
    Tile::template copy_async<kBlockThreads>(g.output(g.dy, batch, head), 0, shared.dy);
    commit_copies();
    const float* lse = g.lse + g.statistics(batch, head);
    const float row_lse[2] = {query_of(0) < shape.seq ? lse[query_of(0)] : 0.0f,
                              query_of(2) < shape.seq ? lse[query_of(2)] : 0.0f};
    wait_copies<0>();
    __syncthreads();
    Backward::differentiate(shape, row_lse, shared);
    __syncthreads();
    float dqueries[Backward::kOutTiles][4];
    multiply<false, true, kPositions>(shared.dscores, kWeightStride, row, shared.keys, Tile::kStride, col,
                                      dqueries);
    store_head(g.dpacked(batch, head), dqueries, row, col, 1, 1);
    add_product(shared.dscores, shared.queries, dkeys);
    add_product(shared.weights, shared.dy, dvalues);
  }
  store_head(g.dpacked(batch, g.key_head(kv_head)), dkeys, row, col, 1, 1);
  store_head(g.dpacked(batch, g.value_head(kv_head)), dvalues, row, col, 1, 1);
}

/// Returns launch.template operator()<kDim>().
template <class Launch>
cudaError_t with_short_dim(const AttentionShape& shape, Launch&& launch) {
  return shape.dim <= 32 ? launch.template operator()<32>() : launch.template operator()<64>();
}

}  // namespace

bool fits_short_attention(const KernelCall& call, const TensorView& qkv, const CudaContext& context) {
  const AttentionShape shape(call.attrs<fb::AttentionT>(), qkv);
  return has_clusters(context) && (qkv.dtype == fb::DType::F32 || qkv.dtype == fb::DType::BF16) &&
         shape.seq <= kPositions && shape.dim <= 64;
}

cudaError_t attention_short(const KernelCall& call, const CudaContext& context) {
  if (call.inputs[0].dtype == fb::DType::BF16) return attention_short_bf16(call, context);
  const AttentionShape shape(call.attrs<fb::AttentionT>(), call.inputs[0]);
  const ShortOperands operands{shape, call.inputs[0].as<const float>(), call.outputs[0].as<float>(),
                               call.outputs[1].as<float>()};
  return with_short_dim(shape, [&]<int kDim>() {
    return launch_grid(context, attend_short<kDim>, dim3(static_cast<unsigned>(shape.batch * shape.heads)),
                       kBlockThreads, sizeof(typename ShortForward<kDim>::Shared), operands);
  });
}

cudaError_t attention_bwd_short(const KernelCall& call, const CudaContext& context) {
  if (call.inputs[1].dtype == fb::DType::BF16) return attention_bwd_short_bf16(call, context);
  const AttentionGradient<float> g = attention_gradient<float>(call);
  return with_short_dim(g.shape, [&]<int kDim>() {
    return launch_grid(context, differentiate_short<kDim>,
                       dim3(static_cast<unsigned>(g.shape.batch * g.shape.kv_heads)), kBlockThreads,
                       sizeof(typename ShortBackward<kDim>::Shared), g);
  });
}

}  // namespace moec::cuda
