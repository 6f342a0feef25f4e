// Backward of bf16 attention on the tensor cores, summed in f32; see attention_bwd.cuh. Scores and their
// gradients stay in registers, where sums of one product are factors of the next.
#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/grid.cuh"

namespace moec::cuda {
namespace {

/// A warp owns 16 positions, and, where a row of sums would not fit in its registers, one of kSplits parts of
/// their columns. Tiles are such that they fit in 68 KiB of shared memory.
template <int kDim, bool kOwnsKeys>
struct MmaBackward {
  using Products = MmaAttention<kDim>;
  static constexpr int kWarps = 4, kBlockThreads = 32 * kWarps;
  static constexpr int kSplits = kDim > 128 ? 2 : 1;
  static constexpr int kOwn = 16 * kWarps / kSplits, kOther = kDim > 64 ? 32 : 64;
  static constexpr int kQueries = kOwnsKeys ? kOther : kOwn;
  static constexpr int kCols = kDim / kSplits;
  using OwnTile = HeadTile<bf16, kOwn, kDim>;
  using OtherTile = HeadTile<bf16, kOther, kDim>;
  using Head = Factor<bf16, Along::kDepth>;

  /// As in attention_bwd_simt.cu, without weights and dscores; lse is times log2(e).
  struct Shared {
    alignas(16) bf16 own[2][OwnTile::kElements];
    alignas(16) bf16 other[2][OtherTile::kElements];
    float lse[kQueries];
    float delta[kQueries];
  };

  template <class Tile>
  __device__ static void copy(const Head& a, const Head& b, int first, bf16 (&tiles)[2][Tile::kElements]) {
    Tile::template copy_async<kBlockThreads>(a, first, tiles[0]);
    Tile::template copy_async<kBlockThreads>(b, first, tiles[1]);
    commit_copies();
  }

  /// 0 for the queries past the end.
  __device__ static void load_statistics(const AttentionGradient<bf16>& g, int batch, int head, int first,
                                         Shared& shared) {
    const int64_t from = g.statistics(batch, head) + first;
    for (int i = static_cast<int>(threadIdx.x); i < kQueries; i += kBlockThreads) {
      const bool exists = first + i < g.shape.seq;
      shared.lse[i] = exists ? g.lse[from + i] * kLog2E : 0.0f;
      shared.delta[i] = exists ? g.delta[from + i] : 0.0f;
    }
  }

  /// Turns scores and dweights of the warp's rows from `row` on into weights and dscores; lse and delta are
  /// of the tile's queries.
  __device__ static void differentiate(const float* lse, const float* delta, int row, int own_first,
                                       int other_first, float scale, float (&scores)[kOther / 8][4],
                                       float (&dweights)[kOther / 8][4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int t = 0; t < kOther / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int own = row + lane / 4 + i / 2 * 8, other = t * 8 + lane % 4 * 2 + i % 2;
        const int query = kOwnsKeys ? other : own;
        const bool visible =
            kOwnsKeys ? own_first + own <= other_first + other : other_first + other <= own_first + own;
        const float weight = visible ? exp2f(scores[t][i] * (scale * kLog2E) - lse[query]) : 0.0f;
        scores[t][i] = weight;
        dweights[t][i] = weight * (dweights[t][i] - delta[query]) * scale;
      }
    }
  }

  __device__ static void run(const AttentionGradient<bf16>& g, const OwnedTile& own, Shared& shared) {
    const AttentionShape& shape = g.shape;
    const int batch = own.batch, kv_head = kOwnsKeys ? own.head : own.head / shape.group();
    const int warp = static_cast<int>(threadIdx.x) / 32, row = warp / kSplits * 16,
              col = warp % kSplits * kCols;
    const auto key = g.packed(batch, g.key_head(kv_head)), value = g.packed(batch, g.value_head(kv_head));
    const auto scale = static_cast<float>(shape.scale());
    float dfirst[kCols / 8][4] = {};  // of keys or queries
    float dvalues[kCols / 8][4] = {};
    if constexpr (kOwnsKeys) {
      copy<OwnTile>(key, value, own.first, shared.own);
    } else {
      copy<OwnTile>(g.packed(batch, own.head), g.output(g.dy, batch, own.head), own.first, shared.own);
      load_statistics(g, batch, own.head, own.first, shared);
    }
    for_each_other_tile<kOwnsKeys, kOwn, kOther>(shape, own, [&](int head, int first) {
      __syncthreads();  // the tiles of the previous visit are no longer needed
      if constexpr (kOwnsKeys) {
        copy<OtherTile>(g.packed(batch, head), g.output(g.dy, batch, head), first, shared.other);
        load_statistics(g, batch, head, first, shared);
      } else {
        copy<OtherTile>(key, value, first, shared.other);
      }
      wait_copies<0>();
      __syncthreads();
      float scores[kOther / 8][4], dweights[kOther / 8][4];
      Products::multiply_rows(shared.own[0], row, shared.other[0], scores);
      Products::multiply_rows(shared.own[1], row, shared.other[1], dweights);
      differentiate(shared.lse, shared.delta, row, own.first, first, scale, scores, dweights);
      Products::add_weighted(dweights, shared.other[0], col, dfirst);
      if constexpr (kOwnsKeys) Products::add_weighted(scores, shared.other[1], col, dvalues);
    });
    const int head = kOwnsKeys ? g.key_head(kv_head) : own.head;
    Products::store(g.dpacked(batch, head), own.first + row, col, dfirst, 1, 1);
    if constexpr (kOwnsKeys)
      Products::store(g.dpacked(batch, g.value_head(kv_head)), own.first + row, col, dvalues, 1, 1);
  }
};

/// delta of one position of one head per warp.
__global__ void __launch_bounds__(kThreads) sum_rows(AttentionGradient<bf16> g) {
  begin_kernel();
  const int64_t index = group_row<kWarp>();  // in [B,S,H]
  const int head = static_cast<int>(index % g.shape.heads);
  const int position = static_cast<int>(index / g.shape.heads % g.shape.seq);
  const int batch = static_cast<int>(index / g.shape.heads / g.shape.seq);
  if (batch >= g.shape.batch) return;
  const auto dy = g.output(g.dy, batch, head), y = g.output(g.y, batch, head);
  float sum = 0;
  for (int i = group_lane<kWarp>() * 4; i < g.shape.dim; i += kWarp * 4) {
    const auto a = dy.load4(position, i), b = y.load4(position, i);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += a.value[j] * b.value[j];
  }
  sum = group_reduce<kWarp>(sum);
  if (group_lane<kWarp>() == 0) g.delta[g.statistics(batch, head) + position] = sum;
}

/// Block (x, y) owns tile y of head x; tiles with the most to visit come first.
template <int kDim, bool kOwnsKeys>
__global__ void __launch_bounds__(MmaBackward<kDim, kOwnsKeys>::kBlockThreads)
    differentiate_mma(AttentionGradient<bf16> g) {
  begin_kernel();
  using Backward = MmaBackward<kDim, kOwnsKeys>;
  const int heads = kOwnsKeys ? g.shape.kv_heads : g.shape.heads;
  const int head = static_cast<int>(blockIdx.x);
  const int tile = static_cast<int>(kOwnsKeys ? blockIdx.y : gridDim.y - 1 - blockIdx.y);
  Backward::run(g, {head / heads, head % heads, tile * Backward::kOwn},
                *static_cast<typename Backward::Shared*>(dynamic_shared()));
}

template <int kDim, bool kOwnsKeys>
cudaError_t launch_side(const AttentionGradient<bf16>& g, const CudaContext& context) {
  using Backward = MmaBackward<kDim, kOwnsKeys>;
  const int heads = g.shape.batch * (kOwnsKeys ? g.shape.kv_heads : g.shape.heads);
  const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(ceil_div(g.shape.seq, Backward::kOwn)));
  return launch_grid(context, differentiate_mma<kDim, kOwnsKeys>, grid, Backward::kBlockThreads,
                     sizeof(typename Backward::Shared), g);
}

/// Sequences so short that one tile holds all positions of a head.
template <int kDim>
struct ShortMmaBackward {
  using Keys = MmaBackward<kDim, true>;
  using Queries = MmaBackward<kDim, false>;
  static constexpr int kPositions = 64, kBlockThreads = Keys::kBlockThreads + Queries::kBlockThreads;
  static_assert(Keys::kOwn == kPositions && Keys::kOther == kPositions && Keys::kSplits == 1);
  using Tile = HeadTile<bf16, kPositions, kDim>;

  struct Shared {
    alignas(16) bf16 queries[Tile::kElements], keys[Tile::kElements], values[Tile::kElements],
        dy[Tile::kElements];
    float lse[kPositions];  // times log2(e)
    float delta[kPositions];
  };

  /// lse and delta of a query head; neighbouring threads share a position. 0 for those past the end.
  __device__ static void load_statistics(const AttentionGradient<bf16>& g, int batch, int head,
                                         Shared& shared) {
    constexpr int kLanes = kBlockThreads / kPositions;
    const int position = static_cast<int>(threadIdx.x) / kLanes,
              lane = static_cast<int>(threadIdx.x) % kLanes;
    const auto dy = g.output(g.dy, batch, head), y = g.output(g.y, batch, head);
    const float lse = position < g.shape.seq ? g.lse[g.statistics(batch, head) + position] * kLog2E : 0.0f;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kDim; i += 4 * kLanes) {
      const auto a = dy.load4(position, i + lane * 4), b = y.load4(position, i + lane * 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += a.value[j] * b.value[j];
    }
    sum = lanes_reduce<kLanes>(sum, Sum());
    if (lane > 0) return;
    shared.delta[position] = sum;
    shared.lse[position] = lse;
  }
};

/// A block per key/value head of a sequence, which visits the query heads of its group in order. Half of the
/// warps own its keys and values, the others the queries.
template <int kDim>
__global__ void __launch_bounds__(ShortMmaBackward<kDim>::kBlockThreads)
    differentiate_short_mma(AttentionGradient<bf16> g) {
  begin_kernel();
  using Backward = ShortMmaBackward<kDim>;
  using Keys = typename Backward::Keys;
  using Products = MmaAttention<kDim>;
  using Tile = typename Backward::Tile;
  constexpr int kBlockThreads = Backward::kBlockThreads, kTiles = Backward::kPositions / 8;
  auto& shared = *static_cast<typename Backward::Shared*>(dynamic_shared());
  const AttentionShape& shape = g.shape;
  const int batch = static_cast<int>(blockIdx.x) / shape.kv_heads,
            kv_head = static_cast<int>(blockIdx.x) % shape.kv_heads;
  const int warp = static_cast<int>(threadIdx.x) / 32, row = warp % Keys::kWarps * 16;
  const bool owns_keys = warp < Keys::kWarps;
  const auto scale = static_cast<float>(shape.scale());
  Tile::template copy_async<kBlockThreads>(g.packed(batch, g.key_head(kv_head)), 0, shared.keys);
  Tile::template copy_async<kBlockThreads>(g.packed(batch, g.value_head(kv_head)), 0, shared.values);
  float dfirst[kDim / 8][4] = {};  // of keys, or of the queries of one head
  float dvalues[kDim / 8][4] = {};
  for (int head = kv_head * shape.group(); head < (kv_head + 1) * shape.group(); ++head) {
    __syncthreads();  // the tiles of the previous head are no longer needed
    Tile::template copy_async<kBlockThreads>(g.packed(batch, head), 0, shared.queries);
    Tile::template copy_async<kBlockThreads>(g.output(g.dy, batch, head), 0, shared.dy);
    commit_copies();
    Backward::load_statistics(g, batch, head, shared);
    wait_copies<0>();
    __syncthreads();
    float scores[kTiles][4], dweights[kTiles][4];
    if (owns_keys) {
      Products::multiply_rows(shared.keys, row, shared.queries, scores);
      Products::multiply_rows(shared.values, row, shared.dy, dweights);
      Keys::differentiate(shared.lse, shared.delta, row, 0, 0, scale, scores, dweights);
      Products::add_weighted(dweights, shared.queries, 0, dfirst);
      Products::add_weighted(scores, shared.dy, 0, dvalues);
    } else {
      Products::multiply_rows(shared.queries, row, shared.keys, scores);
      Products::multiply_rows(shared.dy, row, shared.values, dweights);
      Backward::Queries::differentiate(shared.lse, shared.delta, row, 0, 0, scale, scores, dweights);
#pragma unroll
      for (int t = 0; t < kDim / 8; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) dfirst[t][i] = 0;
      }
      Products::add_weighted(dweights, shared.keys, 0, dfirst);
      Products::store(g.dpacked(batch, head), row, 0, dfirst, 1, 1);
    }
  }
  if (!owns_keys) return;
  Products::store(g.dpacked(batch, g.key_head(kv_head)), row, 0, dfirst, 1, 1);
  Products::store(g.dpacked(batch, g.value_head(kv_head)), row, 0, dvalues, 1, 1);
}

template <int kDim>
cudaError_t launch_short(const AttentionGradient<bf16>& g, const CudaContext& context) {
  using Backward = ShortMmaBackward<kDim>;
  const dim3 grid(static_cast<unsigned>(g.shape.batch * g.shape.kv_heads));
  return launch_grid(context, differentiate_short_mma<kDim>, grid, Backward::kBlockThreads,
                     sizeof(typename Backward::Shared), g);
}

}  // namespace

cudaError_t attention_bwd_mma(const KernelCall& call, const CudaContext& context) {
  const AttentionGradient<bf16> g = attention_gradient<bf16>(call);
  if (g.shape.seq <= ShortMmaBackward<32>::kPositions && g.shape.dim <= 64)
    return g.shape.dim <= 32 ? launch_short<32>(g, context) : launch_short<64>(g, context);
  const int64_t rows = int64_t{g.shape.batch} * g.shape.seq * g.shape.heads;
  const cudaError_t error = launch(context, sum_rows, group_blocks<kWarp>(rows), kThreads, g);
  if (error != cudaSuccess) return error;
  return with_head_dim(g.shape.dim, [&]<int kDim>() {
    const cudaError_t keys = launch_side<kDim, true>(g, context);
    return keys != cudaSuccess ? keys : launch_side<kDim, false>(g, context);
  });
}

}  // namespace moec::cuda
