// Attention in bf16, and its gradient, over sequences so short that a block holds all positions of a head: a
// pass is one launch, every operand is read once, and a warp per 16 positions needs of the others no more
// than row sums. The elements of a head may be multiplied in any order, so that the 16 bytes of a row that a
// lane reads at once are its part of the row's fragments (see mma.cuh). Transposed in the registers they are
// those of products whose depth are positions, the sums of which come out in the same places.
#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/grid.cuh"

namespace moec::cuda {
namespace {

/// Positions of a warp's tile, and tiles of the longest sequence.
constexpr int kTile = 16, kTiles = 4;

/// Lane / 4 and 2 * (lane % 4): a lane's row of the upper eight of a fragment, and its first column.
__device__ inline int lane_group() { return static_cast<int>(threadIdx.x % 32 / 4); }
__device__ inline int lane_pair() { return static_cast<int>(threadIdx.x % 4 * 2); }

/// The 8x8 matrix of bf16 of which a lane holds the elements (group, pair) and (group, pair + 1), transposed.
__device__ inline uint32_t transpose_matrix(uint32_t pair) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

/// Where a head goes; kWhole: its rows are kDim elements and aligned, which spares all looks at that.
template <int kDim, bool kWhole>
__device__ inline Result<bf16> whole(Result<bf16> head) {
  if constexpr (kWhole) {
    head.cols = kDim;
    head.aligned = true;
  }
  return head;
}

/// Positions of a head in shared memory. A lane reads runs of neighbours of a row, one next to those of the
/// three other lanes that read it, without bank conflicts.
template <int kDim>
struct ShortTile {
  static constexpr int kRun = kDim < 32 ? kDim / 4 : 8;
  static constexpr int kStride = kDim < 64 ? kDim : kDim + 32;
  static constexpr int kElements = kTiles * kTile * kStride;

  /// First element of the run of this lane that word number `w` of its words is in.
  __device__ static int first_of_run(int w) { return w / (kRun / 2) * 4 * kRun + lane_pair() / 2 * kRun; }

  /// Starts to copy the whole tiles of the head with kWarps warps for each of them; kWhole as for whole().
  template <int kWarps, bool kWhole>
  __device__ static void copy_async(const Factor<bf16, Along::kDepth>& head, bf16* tile) {
    constexpr int kRuns = kDim / 8, kPass = kWarps * 32 / kRuns;  // positions of a tile in a pass
    const int tiles = static_cast<int>(blockDim.x / (kWarps * 32));
    const int first = static_cast<int>(threadIdx.x / kRuns), col = static_cast<int>(threadIdx.x % kRuns * 8);
    const auto stride = static_cast<unsigned>(head.stride);
#pragma unroll
    for (int pass = 0; pass * kPass < kTile; ++pass) {
      const int row = first + pass * tiles * kPass;
      if (kPass > kTile && row >= tiles * kTile) continue;
      bf16* to = tile + row * kStride + col;
      if constexpr (kWhole) {  // 32 bits hold an offset in a sequence
        const unsigned from =
            static_cast<unsigned>(min(row, head.rows - 1)) * stride + static_cast<unsigned>(col);
        copy16_async(to, head.data + from, row < head.rows);
      } else {
        head.copy_async(row, col, to);
      }
    }
  }
};

/// The rows group and group + 8 of a tile; lanes of a group hold the same row.
template <int kDim>
struct RowFragments {
  using Tile = ShortTile<kDim>;
  static constexpr int kWords = kDim / 8;

  uint32_t word[2][kWords];

  __device__ RowFragments(const bf16* tile, int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bf16* row = tile + (first + lane_group() + half * 8) * Tile::kStride;
#pragma unroll
      for (int w = 0; w < kWords; w += Tile::kRun / 2) {
        const auto run = load_packed<Tile::kRun>(row + Tile::first_of_run(w), 0);
#pragma unroll
        for (int i = 0; i < Tile::kRun / 2; ++i) word[half][w + i] = run.word[i];
      }
    }
  }
};

/// sums[n] = the products of the rows of a with rows 8 n to 8 n + 7 of b.
template <int kDim>
__device__ inline void multiply_rows(const RowFragments<kDim>& a, const RowFragments<kDim>& b,
                                     float (&sums)[2][4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (float& sum : sums[n]) sum = 0;
#pragma unroll
    for (int w = 0; w < kDim / 8; w += 2) {
      const uint32_t left[4] = {a.word[0][w], a.word[1][w], a.word[0][w + 1], a.word[1][w + 1]};
      multiply_add(sums[n], left, b.word[n][w], b.word[n][w + 1]);
    }
  }
}

/// 16 rows of sums over positions: out[w][2 half + i] is element i of the pair that a row's word w holds.
template <int kDim>
struct RowSums {
  float out[kDim / 8][4] = {};

  /// Adds the rows of b, weighted.
  __device__ void add_weighted(const float (&weights)[2][4], const RowFragments<kDim>& b) {
    const uint32_t left[4] = {
        pack_bf16(weights[0][0], weights[0][1]), pack_bf16(weights[0][2], weights[0][3]),
        pack_bf16(weights[1][0], weights[1][1]), pack_bf16(weights[1][2], weights[1][3])};
#pragma unroll
    for (int w = 0; w < kDim / 8; ++w)
      multiply_add(out[w], left, transpose_matrix(b.word[0][w]), transpose_matrix(b.word[1][w]));
  }

  /// Writes the rows of the tile from `first` on; those of the upper and lower eight times `upper` and
  /// `lower`.
  __device__ void store(const Result<bf16>& head, int first, float upper, float lower) const {
    using Tile = ShortTile<kDim>;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int w = 0; w < kDim / 8; w += Tile::kRun / 2) {
        Vector<float, Tile::kRun> values;
#pragma unroll
        for (int i = 0; i < Tile::kRun; ++i)
          values.value[i] = out[w + i / 2][half * 2 + i % 2] * (half == 0 ? upper : lower);
        head.store(first + lane_group() + half * 8, Tile::first_of_run(w), values);
      }
    }
  }
};

/// Whether in the tile of the same queries and keys sum [n][i] is of a query in front of its key; a lane's
/// row is that of a query or of a key.
__device__ inline bool query_row_masked(int n, int i) {
  return n * 8 + lane_pair() + i % 2 > lane_group() + i / 2 * 8;
}
__device__ inline bool key_row_masked(int n, int i) {
  return n * 8 + lane_pair() + i % 2 < lane_group() + i / 2 * 8;
}

struct ForwardOperands {
  AttentionShape shape;
  float scale;  // of the scores, times log2(e)
  const bf16* qkv;
  bf16* y;
  float* lse;  // [B,H,S]
};

template <int kDim>
struct ForwardShared {
  alignas(16) bf16 queries[ShortTile<kDim>::kElements], keys[ShortTile<kDim>::kElements],
      values[ShortTile<kDim>::kElements];
};

/// A block per query head of a sequence, (batch, key/value head, number in its group); a warp per tile of
/// queries. Tile number i of keys is the i-th in front of that of the queries.
template <int kDim, bool kWhole>
__global__ void __launch_bounds__(32 * kTiles) attend_short_bf16(const ForwardOperands operands) {
  begin_kernel();
  using Tile = ShortTile<kDim>;
  auto& shared = *static_cast<ForwardShared<kDim>*>(dynamic_shared());
  const AttentionShape& shape = operands.shape;
  const int batch = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int head = kv_head * static_cast<int>(gridDim.z) + static_cast<int>(blockIdx.z);
  const auto packed = [&](int number) {
    return read_head(shape, operands.qkv, shape.packed_heads(), batch, number);
  };
  Tile::template copy_async<1, kWhole>(packed(head), shared.queries);
  Tile::template copy_async<1, kWhole>(packed(shape.heads + kv_head), shared.keys);
  Tile::template copy_async<1, kWhole>(packed(shape.heads + shape.kv_heads + kv_head), shared.values);
  commit_copies();
  wait_copies<0>();
  __syncthreads();

  const int tile = static_cast<int>(threadIdx.x / 32), first = tile * kTile;
  const RowFragments<kDim> queries(shared.queries, first);
  // No branch spares a warp the tiles that it lacks: the warp that has all takes as long.
  float scores[kTiles][2][4], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    multiply_rows(queries, RowFragments<kDim>(shared.keys, max(first - i * kTile, 0)), scores[i]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (i > tile || (i == 0 && query_row_masked(n, j))) scores[i][n][j] = -INFINITY;
        largest[j / 2] = fmaxf(largest[j / 2], scores[i][n][j]);
      }
    }
  }
  float shift[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    shift[half] = lanes_reduce<4>(largest[half], Larger()) * operands.scale;

  RowSums<kDim> sums;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& weight = scores[i][n][j];
        weight = exp2_fast(fmaf(weight, operands.scale, -shift[j / 2]));
        sum[j / 2] += weight;
      }
    }
    sums.add_weighted(scores[i], RowFragments<kDim>(shared.values, max(first - i * kTile, 0)));
  }
#pragma unroll
  for (float& half : sum) half = lanes_reduce<4>(half, Sum());
  sums.store(whole<kDim, kWhole>(write_head(shape, operands.y, shape.heads, batch, head)), first,
             __fdividef(1, sum[0]), __fdividef(1, sum[1]));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first + lane_group() + half * 8;
    if (lane_pair() == 0 && query < shape.seq)
      operands.lse[(int64_t{batch} * shape.heads + head) * shape.seq + query] =
          (shift[half] + log2f(sum[half])) * kLn2;
  }
}

struct BackwardOperands {
  AttentionGradient<bf16> g;
  float scale;  // of the scores
  int group;    // query heads of a key/value head
};

/// Of one query head at a time. lse is times log2(e). delta, the sums of dy * y, are those of weights *
/// dweights, too, and as such do not depend on how y was rounded.
template <int kDim>
struct BackwardShared {
  alignas(16) bf16 queries[ShortTile<kDim>::kElements], keys[ShortTile<kDim>::kElements],
      values[ShortTile<kDim>::kElements], dy[ShortTile<kDim>::kElements];
  float lse[kTiles * kTile], delta[kTiles * kTile];
};

/// What a warp has of the weights and their gradients, those of the scores in the end: the rows of its tile
/// of queries and of `tiles` tiles of keys, from its own backwards; or of keys, and queries from its own on.
struct WeightGradients {
  float weights[kTiles][2][4], dscores[kTiles][2][4];

  /// Queries from `first` on. Writes their delta.
  template <int kDim>
  __device__ void weigh_queries(BackwardShared<kDim>& shared, int first, int tiles, float scale) {
    const RowFragments<kDim> queries(shared.queries, first), dy(shared.dy, first);
    const float shift[2] = {shared.lse[first + lane_group()], shared.lse[first + lane_group() + 8]};
    float delta[2] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= tiles) continue;
      multiply_rows(queries, RowFragments<kDim>(shared.keys, first - i * kTile), weights[i]);
      multiply_rows(dy, RowFragments<kDim>(shared.values, first - i * kTile), dscores[i]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float& weight = weights[i][n][j];
          weight =
              i == 0 && query_row_masked(n, j) ? 0 : exp2_fast(fmaf(weight, scale * kLog2E, -shift[j / 2]));
          delta[j / 2] += weight * dscores[i][n][j];
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      delta[half] = lanes_reduce<4>(delta[half], Sum());
      if (lane_pair() == 0) shared.delta[first + lane_group() + half * 8] = delta[half];
    }
  }

  /// The dQ of these queries, but for a factor.
  template <int kDim>
  __device__ RowSums<kDim> sum_queries(const BackwardShared<kDim>& shared, int first, int tiles) {
    const float delta[2] = {shared.delta[first + lane_group()], shared.delta[first + lane_group() + 8]};
    RowSums<kDim> dqueries;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= tiles) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) dscores[i][n][j] = weights[i][n][j] * (dscores[i][n][j] - delta[j / 2]);
      }
      dqueries.add_weighted(dscores[i], RowFragments<kDim>(shared.keys, first - i * kTile));
    }
    return dqueries;
  }

  /// Keys from `first` on. Adds to their dV.
  template <int kDim>
  __device__ void weigh_keys(const BackwardShared<kDim>& shared, int first, int tiles, float scale,
                             RowSums<kDim>& dvalues) {
    const RowFragments<kDim> keys(shared.keys, first), values(shared.values, first);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= tiles) continue;
      const RowFragments<kDim> dy(shared.dy, first + i * kTile);
      multiply_rows(keys, RowFragments<kDim>(shared.queries, first + i * kTile), weights[i]);
      multiply_rows(values, dy, dscores[i]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const auto shift = load<2>(shared.lse + first + i * kTile + n * 8 + lane_pair(), 0);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float& weight = weights[i][n][j];
          weight = i == 0 && key_row_masked(n, j)
                       ? 0
                       : exp2_fast(fmaf(weight, scale * kLog2E, -shift.value[j % 2]));
        }
      }
      dvalues.add_weighted(weights[i], dy);
    }
  }

  /// Adds to the dK of these keys, but for a factor.
  template <int kDim>
  __device__ void sum_keys(const BackwardShared<kDim>& shared, int first, int tiles, RowSums<kDim>& dkeys) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= tiles) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const auto delta = load<2>(shared.delta + first + i * kTile + n * 8 + lane_pair(), 0);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          dscores[i][n][j] = weights[i][n][j] * (dscores[i][n][j] - delta.value[j % 2]);
      }
      dkeys.add_weighted(dscores[i], RowFragments<kDim>(shared.queries, first + i * kTile));
    }
  }
};

/// A block per key/value head of a sequence, which visits the query heads of its group in order; a warp per
/// tile of keys, and one per tile of queries.
template <int kDim, bool kWhole>
__global__ void __launch_bounds__(64 * kTiles) differentiate_short_bf16(const BackwardOperands operands) {
  begin_kernel();
  using Tile = ShortTile<kDim>;
  auto& shared = *static_cast<BackwardShared<kDim>*>(dynamic_shared());
  const AttentionGradient<bf16>& g = operands.g;
  const float scale = operands.scale;
  const int batch = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x), tiles = static_cast<int>(blockDim.x / 64);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const bool owns_keys = warp < tiles;
  const int tile = owns_keys ? warp : warp - tiles, first = tile * kTile;
  Tile::template copy_async<2, kWhole>(g.packed(batch, g.key_head(kv_head)), shared.keys);
  Tile::template copy_async<2, kWhole>(g.packed(batch, g.value_head(kv_head)), shared.values);
  RowSums<kDim> dkeys, dvalues;
  for (int member = 0; member < operands.group; ++member) {
    const int head = kv_head * operands.group + member;
    if (member > 0) __syncthreads();  // the tiles of the previous head are no longer needed
    Tile::template copy_async<2, kWhole>(g.packed(batch, head), shared.queries);
    Tile::template copy_async<2, kWhole>(g.output(g.dy, batch, head), shared.dy);
    commit_copies();
    if (thread < tiles * kTile)  // no weight is left of queries past the end
      shared.lse[thread] =
          thread < g.shape.seq ? g.lse[g.statistics(batch, head) + thread] * kLog2E : INFINITY;
    wait_copies<0>();
    __syncthreads();
    WeightGradients gradients;
    if (owns_keys)
      gradients.weigh_keys(shared, first, tiles - tile, scale, dvalues);
    else
      gradients.weigh_queries(shared, first, tile + 1, scale);
    __syncthreads();  // delta is there
    if (owns_keys)
      gradients.sum_keys(shared, first, tiles - tile, dkeys);
    else
      gradients.sum_queries(shared, first, tile + 1)
          .store(whole<kDim, kWhole>(g.dpacked(batch, head)), first, scale, scale);
  }
  if (!owns_keys) return;
  dkeys.store(whole<kDim, kWhole>(g.dpacked(batch, g.key_head(kv_head))), first, scale, scale);
  dvalues.store(whole<kDim, kWhole>(g.dpacked(batch, g.value_head(kv_head))), first, 1, 1);
}

/// Returns launch.template operator()<kDim, kWhole>(); no positions are no work.
template <class Launch>
cudaError_t with_short_dim(const KernelCall& call, int dim, Launch&& launch) {
  if (call.outputs[0].elements() == 0) return cudaSuccess;
  const auto aligned = [](const TensorView& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; };
  const bool all_aligned =
      std::ranges::all_of(call.inputs, aligned) && std::ranges::all_of(call.outputs, aligned);
  const auto with_dim = [&]<int kDim>() {
    return all_aligned && dim == kDim ? launch.template operator()<kDim, true>()
                                      : launch.template operator()<kDim, false>();
  };
  if (dim <= 16) return with_dim.template operator()<16>();
  if (dim <= 32) return with_dim.template operator()<32>();
  return with_dim.template operator()<64>();
}

}  // namespace

cudaError_t attention_short_bf16(const KernelCall& call, const CudaContext& context) {
  const AttentionShape shape(call.attrs<fb::AttentionT>(), call.inputs[0]);
  const ForwardOperands operands{shape, static_cast<float>(shape.scale()) * kLog2E,
                                 call.inputs[0].as<const bf16>(), call.outputs[0].as<bf16>(),
                                 call.outputs[1].as<float>()};
  const dim3 grid(static_cast<unsigned>(shape.batch), static_cast<unsigned>(shape.kv_heads),
                  static_cast<unsigned>(shape.group()));
  return with_short_dim(call, shape.dim, [&]<int kDim, bool kWhole>() {
    return launch_grid(context, attend_short_bf16<kDim, kWhole>, grid,
                       static_cast<int>(ceil_div(shape.seq, kTile)) * 32, sizeof(ForwardShared<kDim>),
                       operands);
  });
}

cudaError_t attention_bwd_short_bf16(const KernelCall& call, const CudaContext& context) {
  const AttentionGradient<bf16> g = attention_gradient<bf16>(call);
  const BackwardOperands operands{g, static_cast<float>(g.shape.scale()), g.shape.group()};
  const dim3 grid(static_cast<unsigned>(g.shape.batch), static_cast<unsigned>(g.shape.kv_heads));
  return with_short_dim(call, g.shape.dim, [&]<int kDim, bool kWhole>() {
    return launch_grid(context, differentiate_short_bf16<kDim, kWhole>, grid,
                       static_cast<int>(ceil_div(g.shape.seq, kTile)) * 64, sizeof(BackwardShared<kDim>),
                       operands);
  });
}

}  // namespace moec::cuda
