// What the attention kernels share: where the heads of packed queries, keys and values lie, tiles of them in
// shared memory, and products of such tiles by threads or by warps.
#pragma once

#include <cmath>

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// 2^x, good to 2 ulp; 0 where that is no normal number.
__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Heads of qkv[B,S,(H+2K)d]: H of queries, K of keys, K of values; and of y[B,S,Hd].
struct AttentionShape {
  int batch, seq, heads, kv_heads, dim;

  AttentionShape(const fb::AttentionT& attrs, const TensorView& qkv)
      : batch(static_cast<int>(qkv.dim(0))),
        seq(static_cast<int>(qkv.dim(1))),
        heads(static_cast<int>(attrs.heads)),
        kv_heads(static_cast<int>(attrs.kv_heads)),
        dim(static_cast<int>(attrs.head_dim)) {}

  __host__ __device__ int group() const { return heads / kv_heads; }  // query heads of a key/value head
  __host__ __device__ int packed_heads() const { return heads + 2 * kv_heads; }
  __host__ __device__ double scale() const { return 1 / std::sqrt(static_cast<double>(dim)); }
};

/// Returns body.template operator()<kDim>() for the smallest supported width of at least `dim` elements.
/// Tiles are padded to it with zeros, which change no product.
template <class Body>
cudaError_t with_head_dim(int dim, Body&& body) {
  if (dim <= 32) return body.template operator()<32>();
  if (dim <= 64) return body.template operator()<64>();
  if (dim <= 128) return body.template operator()<128>();
  if (dim <= 256) return body.template operator()<256>();
  return cudaErrorNotSupported;
}

/// A head of rows[B,S,`heads` d], as a matrix [S,d] to read.
template <class T>
__device__ Factor<T, Along::kDepth> read_head(const AttentionShape& shape, const T* rows, int heads,
                                              int batch, int head) {
  const int64_t stride = int64_t{heads} * shape.dim;
  const T* data = rows + batch * shape.seq * stride + int64_t{head} * shape.dim;
  return {data, stride, shape.seq, shape.dim, runs_aligned(data, stride) && runs_aligned(data, shape.dim)};
}

/// The same to write.
template <class T>
__device__ Result<T> write_head(const AttentionShape& shape, T* rows, int heads, int batch, int head) {
  const int64_t stride = int64_t{heads} * shape.dim;
  T* data = rows + batch * shape.seq * stride + int64_t{head} * shape.dim;
  return {data, stride, shape.seq, shape.dim, nullptr, false, runs_aligned(data, stride)};
}

/// kRows positions of a head in shared memory, padded to kDim elements and 16 bytes more, so that eight rows,
/// 16 bytes each, lie in different banks.
template <class T, int kRows, int kDim>
struct HeadTile {
  static constexpr int kStride = kDim + 16 / static_cast<int>(sizeof(T));
  static constexpr int kElements = kRows * kStride;

  /// Starts to copy the positions from `first` on, with kBlockThreads threads.
  template <int kBlockThreads>
  __device__ static void copy_async(const Factor<T, Along::kDepth>& head, int first, T* tile) {
    constexpr int kRun = 16 / static_cast<int>(sizeof(T)), kRuns = kDim / kRun;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kRuns; i += kBlockThreads) {
      const int row = i / kRuns, col = i % kRuns * kRun;
      head.copy_async(first + row, col, tile + row * kStride + col);
    }
  }

  /// The same from a head that is stored in another type.
  template <int kBlockThreads, class Stored>
  __device__ static void copy_async(const Factor<Stored, Along::kDepth>& head, int first, T* tile) {
    constexpr int kRuns = kDim / 4;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kRuns; i += kBlockThreads) {
      const int row = i / kRuns, col = i % kRuns * 4;
      *reinterpret_cast<Vector<T, 4>*>(tile + row * kStride + col) = head.load4(first + row, col);
    }
  }
};

/// Products of tiles by the 128 threads of a block, each of which owns the rows `lane_row() * kRows + r`. Its
/// columns are lane_col() + 16 j of scores, and groups of neighbours of outputs. Rows lie within a half-warp.
template <int kDim>
struct SimtAttention {
  static constexpr int kThreads = 128;
  static constexpr int kLaneRows = 8, kLaneCols = 16;
  static constexpr int kOutCols = kDim / kLaneCols;  // outputs of a thread in a row
  static constexpr int kNeighbours = kOutCols < 4 ? kOutCols : 4;

  __device__ static int lane_row() { return static_cast<int>(threadIdx.x) / kLaneCols; }
  __device__ static int lane_col() { return static_cast<int>(threadIdx.x) % kLaneCols; }
  /// First column of the group of outputs number g.
  __device__ static int out_col(int g) { return (g * kLaneCols + lane_col()) * kNeighbours; }

  /// out[r][j] = the product of row r of a and row j of b, tiles of heads.
  template <int kRows, int kCols, class T>
  __device__ static void multiply_rows(const T* a, const T* b, T (&out)[kRows][kCols]) {
    constexpr int kStride = HeadTile<T, 1, kDim>::kStride;
    a += lane_row() * kRows * kStride;
    b += lane_col() * kStride;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) out[r][j] = 0;
    }
#pragma unroll 4
    for (int i = 0; i < kDim; i += 4) {
      Vector<T, 4> rows[kRows], cols[kCols];
#pragma unroll
      for (int r = 0; r < kRows; ++r) rows[r] = *reinterpret_cast<const Vector<T, 4>*>(a + r * kStride + i);
#pragma unroll
      for (int j = 0; j < kCols; ++j)
        cols[j] = *reinterpret_cast<const Vector<T, 4>*>(b + j * kLaneCols * kStride + i);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kCols; ++j) {
#pragma unroll
          for (int x = 0; x < 4; ++x) out[r][j] += rows[r].value[x] * cols[j].value[x];
        }
      }
    }
  }

  /// out[r] += the rows of `values`, a tile of kDepth positions of a head, weighted with row r of
  /// weights[..][weight_stride].
  template <int kDepth, int kRows, class T>
  __device__ static void add_weighted(const T* weights, int weight_stride, const T* values,
                                      T (&out)[kRows][kOutCols]) {
    constexpr int kStride = HeadTile<T, 1, kDim>::kStride;
    weights += lane_row() * kRows * weight_stride;
#pragma unroll 2
    for (int k = 0; k < kDepth; k += 4) {
      Vector<T, 4> weight[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        weight[r] = *reinterpret_cast<const Vector<T, 4>*>(weights + r * weight_stride + k);
#pragma unroll
      for (int x = 0; x < 4; ++x) {
#pragma unroll
        for (int g = 0; g < kOutCols / kNeighbours; ++g) {
          const auto value =
              *reinterpret_cast<const Vector<T, kNeighbours>*>(values + (k + x) * kStride + out_col(g));
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int j = 0; j < kNeighbours; ++j)
              out[r][g * kNeighbours + j] += weight[r].value[x] * value.value[j];
          }
        }
      }
    }
  }

  /// Writes this thread's outputs, times `factor(r)`, to the positions from `first` on.
  template <int kRows, class T, class Scale>
  __device__ static void store(const Result<T>& head, int first, const Accumulator<T> (&out)[kRows][kOutCols],
                               Scale&& factor) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int g = 0; g < kOutCols / kNeighbours; ++g) {
        Vector<Accumulator<T>, kNeighbours> sums;
#pragma unroll
        for (int j = 0; j < kNeighbours; ++j) sums.value[j] = out[r][g * kNeighbours + j] * factor(r);
        head.store(first + lane_row() * kRows + r, out_col(g), sums);
      }
    }
  }
};

/// Products of 16 rows of a tile by a warp, in fragments (see mma.cuh): sums[t] holds the columns 8 t to 8 t
/// + 7. Head tiles have a width of kDim.
template <int kDim>
struct MmaAttention {
  static constexpr int kStride = HeadTile<bf16, 1, kDim>::kStride;

  /// sums = the products of the rows of a from `row` on with the rows of b, tiles of heads.
  template <int kTiles>
  __device__ static void multiply_rows(const bf16* a, int row, const bf16* b, float (&sums)[kTiles][4]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[t][i] = 0;
    }
#pragma unroll 4
    for (int k = 0; k < kDim; k += 16) {
      uint32_t left[4];
      load_a<false>(left, a, kStride, row, k);
#pragma unroll
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t right[4];
        load_b<false>(right, b, kStride, t * 8, k);
        multiply_add(sums[t], left, right[0], right[1]);
        multiply_add(sums[t + 1], left, right[2], right[3]);
      }
    }
  }

  /// out += weights values: the columns of `values`, a tile of heads of kTiles * 8 positions, from `col` on.
  template <int kTiles, int kOutTiles>
  __device__ static void add_weighted(const float (&weights)[kTiles][4], const bf16* values, int col,
                                      float (&out)[kOutTiles][4]) {
#pragma unroll
    for (int k = 0; k < kTiles; k += 2) {
      const uint32_t left[4] = {
          pack_bf16(weights[k][0], weights[k][1]), pack_bf16(weights[k][2], weights[k][3]),
          pack_bf16(weights[k + 1][0], weights[k + 1][1]), pack_bf16(weights[k + 1][2], weights[k + 1][3])};
#pragma unroll
      for (int t = 0; t < kOutTiles; t += 2) {
        uint32_t right[4];
        load_b<true>(right, values, kStride, col + t * 8, k * 8);
        multiply_add(out[t], left, right[0], right[1]);
        multiply_add(out[t + 1], left, right[2], right[3]);
      }
    }
  }

  /// Writes 16 rows of outputs from (row, col) on; those of the upper and lower eight times `upper` and
  /// `lower`.
  template <int kOutTiles>
  __device__ static void store(const Result<bf16>& head, int row, int col, const float (&out)[kOutTiles][4],
                               float upper, float lower) {
    const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < kOutTiles; ++t) {
      const int to_col = col + t * 8 + pair;
      head.store(row + group, to_col, Vector<float, 2>{out[t][0] * upper, out[t][1] * upper});
      head.store(row + group + 8, to_col, Vector<float, 2>{out[t][2] * lower, out[t][3] * lower});
    }
  }
};

/// op over the values of kLanes neighbouring lanes, for all of them.
template <int kLanes, class T, class Op>
__device__ inline T lanes_reduce(T value, Op op) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value = op(value, shuffle_xor(value, mask));
  return value;
}

/// Whether one block can hold all positions of a head, in f32 or bf16, and the kernels for that.
bool fits_short_attention(const KernelCall& call, const TensorView& qkv, const CudaContext& context);
cudaError_t attention_short(const KernelCall& call, const CudaContext& context);
cudaError_t attention_bwd_short(const KernelCall& call, const CudaContext& context);

/// The same in bf16, called by those.
cudaError_t attention_short_bf16(const KernelCall& call, const CudaContext& context);
cudaError_t attention_bwd_short_bf16(const KernelCall& call, const CudaContext& context);

}  // namespace moec::cuda
