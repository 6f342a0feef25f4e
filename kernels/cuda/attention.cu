// Causal softmax attention in tiles of queries and keys, so that no S x S matrix is ever stored: a running
// maximum and sum per query (Milakov and Gimelshein 2018; Dao et al. 2022). See attention_bwd.cu for the
// backward.
#include <limits>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cudnn/attention.h"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/attention.h"
#include "kernels/cuda/variants.h"

namespace moec::cuda {
namespace {

template <class T>
struct Operands {
  AttentionShape shape;
  const T* qkv;
  T* y;
  Accumulator<T>* lse;  // [B,H,S]

  __device__ auto query(int batch, int head) const {
    return read_head(shape, qkv, shape.packed_heads(), batch, head);
  }
  __device__ auto key(int batch, int head) const {
    return read_head(shape, qkv, shape.packed_heads(), batch, shape.heads + head / shape.group());
  }
  __device__ auto value(int batch, int head) const {
    return read_head(shape, qkv, shape.packed_heads(), batch,
                     shape.heads + shape.kv_heads + head / shape.group());
  }
};

/// What a block needs of a kernel: its tile of queries, one head per blockIdx.x, the last queries, which have
/// the most keys, in the first blocks.
struct BlockPlace {
  int batch, head, first_query;

  __device__ BlockPlace(const AttentionShape& shape, int queries)
      : batch(static_cast<int>(blockIdx.x) / shape.heads),
        head(static_cast<int>(blockIdx.x) % shape.heads),
        first_query(static_cast<int>(gridDim.y - 1 - blockIdx.y) * queries) {}
};

/// Calls scores(first key of a tile) and then outputs(), for all tiles of keys up to last_query, while the
/// next tiles of keys and values are on their way. The caller has started to copy the first keys (one group
/// of copies) and values.
template <class CopyKeys, class CopyValues, class Scores, class Outputs>
__device__ void for_each_key_tile(int tile, int last_query, CopyKeys&& copy_keys, CopyValues&& copy_values,
                                  Scores&& scores, Outputs&& outputs) {
  for (int first = 0; first <= last_query; first += tile) {
    const int next = first + tile;
    wait_copies<1>();
    __syncthreads();  // the keys are there
    scores(first);
    wait_copies<0>();
    __syncthreads();  // the values are there, and the keys no longer needed
    if (next <= last_query) copy_keys(next);
    commit_copies();
    outputs();
    __syncthreads();  // the values are no longer needed
    if (next <= last_query) copy_values(next);
    commit_copies();
  }
  wait_copies<0>();
}

/// Tiles of 32 queries and about 16 KiB of f32 keys, in the type T of the arithmetic.
template <class T, int kDim>
struct SimtForward {
  using Products = SimtAttention<kDim>;
  static constexpr int kQueries = 32, kKeys = kDim <= 64 ? 64 : 4096 / kDim;
  static constexpr int kRows = kQueries / Products::kLaneRows, kCols = kKeys / Products::kLaneCols;
  static constexpr int kWeightStride = kKeys + 4;
  using QueryTile = HeadTile<T, kQueries, kDim>;
  using KeyTile = HeadTile<T, kKeys, kDim>;
  static constexpr size_t kSharedBytes =
      sizeof(T) * (QueryTile::kElements + 2 * KeyTile::kElements + kQueries * kWeightStride);

  T out[kRows][Products::kOutCols] = {};
  T max[kRows];
  T sum[kRows] = {};

  __device__ SimtForward() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) max[r] = -std::numeric_limits<T>::infinity();
  }

  /// Replaces scores by weights exp(score - max), and brings the running values to the new maximum.
  __device__ void fold(T (&scores)[kRows][kCols], int first_query, int first_key, T scale) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int query = first_query + Products::lane_row() * kRows + r;
      T new_max = max[r];
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const int key = first_key + Products::lane_col() + j * Products::kLaneCols;
        scores[r][j] = key <= query ? scores[r][j] * scale : -std::numeric_limits<T>::infinity();
        new_max = Larger()(new_max, scores[r][j]);
      }
      new_max = lanes_reduce<Products::kLaneCols>(new_max, Larger());
      T added = 0;
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        scores[r][j] = std::exp(scores[r][j] - new_max);
        added += scores[r][j];
      }
      const T shrink = std::exp(max[r] - new_max);
      sum[r] = sum[r] * shrink + lanes_reduce<Products::kLaneCols>(added, Sum());
      max[r] = new_max;
#pragma unroll
      for (T& value : out[r]) value *= shrink;
    }
  }
};

template <class T, int kDim>
__global__ void __launch_bounds__(SimtAttention<kDim>::kThreads) attend_simt(Operands<T> operands) {
  begin_kernel();
  using Acc = Accumulator<T>;
  using Forward = SimtForward<Acc, kDim>;
  using Products = SimtAttention<kDim>;
  const AttentionShape& shape = operands.shape;
  const BlockPlace place(shape, Forward::kQueries);
  const auto query = operands.query(place.batch, place.head), key = operands.key(place.batch, place.head),
             value = operands.value(place.batch, place.head);
  Acc* const queries = static_cast<Acc*>(dynamic_shared());
  Acc* const keys = queries + Forward::QueryTile::kElements;
  Acc* const values = keys + Forward::KeyTile::kElements;
  Acc* const weights = values + Forward::KeyTile::kElements;
  const auto copy_keys = [&](int first) {
    Forward::KeyTile::template copy_async<Products::kThreads>(key, first, keys);
  };
  const auto copy_values = [&](int first) {
    Forward::KeyTile::template copy_async<Products::kThreads>(value, first, values);
  };

  Forward forward;
  Forward::QueryTile::template copy_async<Products::kThreads>(query, place.first_query, queries);
  copy_keys(0);
  commit_copies();
  copy_values(0);
  commit_copies();
  const auto scale = static_cast<Acc>(shape.scale());
  for_each_key_tile(
      Forward::kKeys, min(place.first_query + Forward::kQueries, shape.seq) - 1, copy_keys, copy_values,
      [&](int first_key) {
        Acc scores[Forward::kRows][Forward::kCols];
        Products::multiply_rows(queries, keys, scores);
        forward.fold(scores, place.first_query, first_key, scale);
#pragma unroll
        for (int r = 0; r < Forward::kRows; ++r) {
          Acc* row = weights + (Products::lane_row() * Forward::kRows + r) * Forward::kWeightStride;
#pragma unroll
          for (int j = 0; j < Forward::kCols; ++j)
            row[Products::lane_col() + j * Products::kLaneCols] = scores[r][j];
        }
      },
      [&] {
        Products::template add_weighted<Forward::kKeys>(weights, Forward::kWeightStride, values, forward.out);
      });

  Products::store(write_head(shape, operands.y, shape.heads, place.batch, place.head), place.first_query,
                  forward.out, [&](int r) { return 1 / forward.sum[r]; });
#pragma unroll
  for (int r = 0; r < Forward::kRows; ++r) {
    const int position = place.first_query + Products::lane_row() * Forward::kRows + r;
    if (Products::lane_col() == 0 && position < shape.seq)
      operands.lse[int64_t{blockIdx.x} * shape.seq + position] = forward.max[r] + std::log(forward.sum[r]);
  }
}

/// A warp per 16 queries. Tiles are such that they fit in the shared memory of any device.
template <int kDim>
struct MmaForward {
  using Products = MmaAttention<kDim>;
  static constexpr int kQueries = kDim <= 128 ? 64 : 32, kKeys = kQueries;
  static constexpr int kBlockThreads = kQueries / 16 * 32;
  using QueryTile = HeadTile<bf16, kQueries, kDim>;
  using KeyTile = HeadTile<bf16, kKeys, kDim>;
  static constexpr size_t kSharedBytes = sizeof(bf16) * (QueryTile::kElements + 2 * KeyTile::kElements);

  float scores[kKeys / 8][4];
  float out[kDim / 8][4] = {};
  float max[2] = {-INFINITY, -INFINITY};  // of the scores of the thread's two rows, unscaled
  float sum[2] = {};

  /// Replaces scores by weights 2^((score - max) * scale), and brings the running values to the new maximum.
  /// `row` is the query of the thread's first row, `masked` whether a key of the tile may come after it.
  __device__ void fold(int row, int first_key, bool masked, float scale) {
    const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float new_max = max[half];
#pragma unroll
      for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[t][half * 2 + i];
          if (masked && first_key + t * 8 + pair + i > row + half * 8) score = -INFINITY;
          new_max = fmaxf(new_max, score);
        }
      }
      new_max = lanes_reduce<4>(new_max, Larger());
      float added = 0;
#pragma unroll
      for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[t][half * 2 + i];
          score = exp2f((score - new_max) * scale);
          added += score;
        }
      }
      const float shrink = exp2f((max[half] - new_max) * scale);
      sum[half] = sum[half] * shrink + lanes_reduce<4>(added, Sum());
      max[half] = new_max;
#pragma unroll
      for (auto& tile : out) {
        tile[half * 2] *= shrink;
        tile[half * 2 + 1] *= shrink;
      }
    }
  }
};

template <int kDim>
__global__ void __launch_bounds__(MmaForward<kDim>::kBlockThreads) attend_mma(Operands<bf16> operands) {
  begin_kernel();
  using Forward = MmaForward<kDim>;
  using Products = MmaAttention<kDim>;
  const AttentionShape& shape = operands.shape;
  const BlockPlace place(shape, Forward::kQueries);
  const auto query = operands.query(place.batch, place.head), key = operands.key(place.batch, place.head),
             value = operands.value(place.batch, place.head);
  bf16* const queries = static_cast<bf16*>(dynamic_shared());
  bf16* const keys = queries + Forward::QueryTile::kElements;
  bf16* const values = keys + Forward::KeyTile::kElements;
  const auto copy_keys = [&](int first) {
    Forward::KeyTile::template copy_async<Forward::kBlockThreads>(key, first, keys);
  };
  const auto copy_values = [&](int first) {
    Forward::KeyTile::template copy_async<Forward::kBlockThreads>(value, first, values);
  };

  Forward forward;
  Forward::QueryTile::template copy_async<Forward::kBlockThreads>(query, place.first_query, queries);
  copy_keys(0);
  commit_copies();
  copy_values(0);
  commit_copies();
  const float scale = static_cast<float>(shape.scale()) * kLog2E;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16, lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = place.first_query + warp_row + lane / 4;
  for_each_key_tile(
      Forward::kKeys, min(place.first_query + Forward::kQueries, shape.seq) - 1, copy_keys, copy_values,
      [&](int first_key) {
        Products::multiply_rows(queries, warp_row, keys, forward.scores);
        forward.fold(first_row, first_key, first_key + Forward::kKeys > place.first_query + warp_row, scale);
      },
      [&] { Products::add_weighted(forward.scores, values, 0, forward.out); });

  Products::store(write_head(shape, operands.y, shape.heads, place.batch, place.head),
                  place.first_query + warp_row, 0, forward.out, 1 / forward.sum[0], 1 / forward.sum[1]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int position = first_row + half * 8;
    if (lane % 4 == 0 && position < shape.seq)
      operands.lse[int64_t{blockIdx.x} * shape.seq + position] =
          (forward.max[half] * scale + log2f(forward.sum[half])) * kLn2;
  }
}

template <class T>
cudaError_t launch_attention(const KernelCall& call, const CudaContext& context) {
  const AttentionShape shape(call.attrs<fb::AttentionT>(), call.inputs[0]);
  const Operands<T> operands{shape, call.inputs[0].as<const T>(), call.outputs[0].as<T>(),
                             call.outputs[1].as<Accumulator<T>>()};
  const auto grid = [&](int queries) {
    return dim3(static_cast<unsigned>(shape.batch * shape.heads),
                static_cast<unsigned>(ceil_div(shape.seq, queries)));
  };
  return with_head_dim(shape.dim, [&]<int kDim>() {
    if constexpr (std::is_same_v<T, bf16>) {
      using Forward = MmaForward<kDim>;
      return launch_grid(context, attend_mma<kDim>, grid(Forward::kQueries), Forward::kBlockThreads,
                         Forward::kSharedBytes, operands);
    } else {
      using Forward = SimtForward<Accumulator<T>, kDim>;
      return launch_grid(context, attend_simt<T, kDim>, grid(Forward::kQueries),
                         SimtAttention<kDim>::kThreads, Forward::kSharedBytes, operands);
    }
  });
}

bool fits_short(const KernelCall& call, const CudaContext& context) {
  return fits_short_attention(call, call.inputs[0], context);
}

bool fits_hopper(const KernelCall& call, const CudaContext&) {
  return hopper_attention_supported(call, call.inputs[0]);
}

cudaError_t attention_portable(const KernelCall& call, const CudaContext& context) {
  return with_type(call.inputs[0].dtype, [&]<class T>() { return launch_attention<T>(call, context); });
}

}  // namespace

cudaError_t attention(const KernelCall& call, const CudaContext& context) {
  if (fits_short(call, context)) return attention_short(call, context);
  if (fits_hopper(call, context)) return attention_hopper(call, context);
  return attention_portable(call, context);
}

std::span<const CudaVariant> attention_variants() {
  constexpr AttentionPass kPass = AttentionPass::kForward;
  static constexpr CudaVariant kVariants[] = {
      {"attention", "short", fits_short, attention_short},
      {"attention", "hopper", fits_hopper, attention_hopper},
      {"attention", "cudnn", cudnn_computes<kPass>, attention_cudnn<kPass>},
      {"attention", "portable", always_computes, attention_portable}};
  return kVariants;
}

}  // namespace moec::cuda
