// Backward of f32, f64 and f16 attention in plain arithmetic; see attention_bwd.cuh. One launch for the
// gradients of keys, values and queries, so that short sequences fill the device.
#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/grid.cuh"

namespace moec::cuda {
namespace {

/// T is how heads are stored; shared memory holds them in the type of the arithmetic.
template <class T, int kDim>
struct SimtBackward {
  using Acc = Accumulator<T>;
  using Products = SimtAttention<kDim>;
  static constexpr int kTile = kDim <= 128 ? 32 : 16;  // positions, of both sides
  static constexpr int kRows = kTile / Products::kLaneRows, kCols = kTile / Products::kLaneCols;
  static constexpr int kScoreStride = kTile + 4;
  using Tile = HeadTile<Acc, kTile, kDim>;

  /// In shared memory: the owned tiles (keys and values, or queries and dy), the visited ones (queries and
  /// dy, or keys and values), weights and dscores [own][other], and lse and delta of the queries.
  struct Shared {
    alignas(16) Acc own[2][Tile::kElements];
    alignas(16) Acc other[2][Tile::kElements];
    alignas(16) Acc weights[kTile * kScoreStride];
    alignas(16) Acc dscores[kTile * kScoreStride];
    Acc lse[kTile];
    Acc delta[kTile];
  };

  __device__ static void copy(const Factor<T, Along::kDepth>& a, const Factor<T, Along::kDepth>& b, int first,
                              Acc (&tiles)[2][Tile::kElements]) {
    Tile::template copy_async<Products::kThreads>(a, first, tiles[0]);
    Tile::template copy_async<Products::kThreads>(b, first, tiles[1]);
    commit_copies();
  }

  /// Fills lse and delta for the queries from `first` on, whose dy is a tile in shared memory; 0 for those
  /// past the end.
  __device__ static void load_statistics(const AttentionGradient<T>& g, int batch, int head, int first,
                                         const Acc* dy, Shared& shared) {
    constexpr int kLanes = Products::kThreads / kTile;
    const int row = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
    const auto y = g.output(g.y, batch, head);
    Acc sum = 0;
    for (int i = lane * 4; i < kDim; i += kLanes * 4) {
      const auto value = y.load4(first + row, i);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += value.value[j] * dy[row * Tile::kStride + i + j];
    }
    sum = lanes_reduce<kLanes>(sum, Sum());
    if (lane > 0) return;
    shared.delta[row] = sum;
    shared.lse[row] = first + row < g.shape.seq ? g.lse[g.statistics(batch, head) + first + row] : Acc{0};
  }

  /// Writes weights and dscores of the owned tile against the visited one.
  template <bool kOwnsKeys>
  __device__ static void differentiate(Shared& shared, int own_first, int other_first, Acc scale) {
    Acc scores[kRows][kCols], dweights[kRows][kCols];
    Products::multiply_rows(shared.own[0], shared.other[0], scores);
    Products::multiply_rows(shared.own[1], shared.other[1], dweights);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = Products::lane_row() * kRows + r;
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const int col = Products::lane_col() + j * Products::kLaneCols;
        const int query = kOwnsKeys ? col : row;
        const bool visible =
            kOwnsKeys ? own_first + row <= other_first + col : other_first + col <= own_first + row;
        const Acc weight = visible ? std::exp(scores[r][j] * scale - shared.lse[query]) : Acc{0};
        if (kOwnsKeys) shared.weights[row * kScoreStride + col] = weight;
        shared.dscores[row * kScoreStride + col] = weight * (dweights[r][j] - shared.delta[query]) * scale;
      }
    }
  }

  template <bool kOwnsKeys>
  __device__ static void run(const AttentionGradient<T>& g, const OwnedTile& own, Shared& shared) {
    const AttentionShape& shape = g.shape;
    const int batch = own.batch, kv_head = kOwnsKeys ? own.head : own.head / shape.group();
    const auto key = g.packed(batch, g.key_head(kv_head)), value = g.packed(batch, g.value_head(kv_head));
    const auto scale = static_cast<Acc>(shape.scale());
    Acc dfirst[kRows][Products::kOutCols] = {};  // of keys or queries
    Acc dvalues[kRows][Products::kOutCols] = {};
    if constexpr (kOwnsKeys) {
      copy(key, value, own.first, shared.own);
    } else {
      copy(g.packed(batch, own.head), g.output(g.dy, batch, own.head), own.first, shared.own);
      wait_copies<0>();
      __syncthreads();
      load_statistics(g, batch, own.head, own.first, shared.own[1], shared);
    }
    for_each_other_tile<kOwnsKeys, kTile, kTile>(shape, own, [&](int head, int first) {
      __syncthreads();  // the tiles of the previous visit are no longer needed
      if constexpr (kOwnsKeys) {
        copy(g.packed(batch, head), g.output(g.dy, batch, head), first, shared.other);
      } else {
        copy(key, value, first, shared.other);
      }
      wait_copies<0>();
      __syncthreads();
      if constexpr (kOwnsKeys) {
        load_statistics(g, batch, head, first, shared.other[1], shared);
        __syncthreads();
      }
      differentiate<kOwnsKeys>(shared, own.first, first, scale);
      __syncthreads();
      Products::template add_weighted<kTile>(shared.dscores, kScoreStride, shared.other[0], dfirst);
      if constexpr (kOwnsKeys)
        Products::template add_weighted<kTile>(shared.weights, kScoreStride, shared.other[1], dvalues);
    });
    const auto as_is = [](int) { return Acc{1}; };
    const int head = kOwnsKeys ? g.key_head(kv_head) : own.head;
    Products::store(g.dpacked(batch, head), own.first, dfirst, as_is);
    if constexpr (kOwnsKeys)
      Products::store(g.dpacked(batch, g.value_head(kv_head)), own.first, dvalues, as_is);
  }
};

/// The first blocks own tiles of keys, the others tiles of queries; those with the most to visit come first.
template <class T, int kDim>
__global__ void __launch_bounds__(SimtAttention<kDim>::kThreads) differentiate_simt(AttentionGradient<T> g) {
  begin_kernel();
  using Backward = SimtBackward<T, kDim>;
  auto& shared = *static_cast<typename Backward::Shared*>(dynamic_shared());
  const int tiles = (g.shape.seq + Backward::kTile - 1) / Backward::kTile;
  const int key_heads = g.shape.batch * g.shape.kv_heads, query_heads = g.shape.batch * g.shape.heads;
  const int block = static_cast<int>(blockIdx.x), rest = block - tiles * key_heads;
  if (rest < 0) {
    const int head = block % key_heads;
    Backward::template run<true>(
        g, {head / g.shape.kv_heads, head % g.shape.kv_heads, block / key_heads * Backward::kTile}, shared);
  } else {
    const int head = rest % query_heads;
    Backward::template run<false>(
        g, {head / g.shape.heads, head % g.shape.heads, (tiles - 1 - rest / query_heads) * Backward::kTile},
        shared);
  }
}

template <class T>
cudaError_t launch_backward(const KernelCall& call, const CudaContext& context) {
  const AttentionGradient<T> g = attention_gradient<T>(call);
  return with_head_dim(g.shape.dim, [&]<int kDim>() {
    using Backward = SimtBackward<T, kDim>;
    const int64_t heads = int64_t{g.shape.batch} * (g.shape.heads + g.shape.kv_heads);
    const dim3 grid(static_cast<unsigned>(ceil_div(g.shape.seq, Backward::kTile) * heads));
    return launch_grid(context, differentiate_simt<T, kDim>, grid, SimtAttention<kDim>::kThreads,
                       sizeof(typename Backward::Shared), g);
  });
}

}  // namespace

cudaError_t attention_bwd_simt(const KernelCall& call, const CudaContext& context) {
  const fb::DType dtype = call.inputs[1].dtype;
  if (dtype == fb::DType::F16) return launch_backward<f16>(call, context);
  return with_accumulator_type(dtype, [&]<class T>() { return launch_backward<T>(call, context); });
}

}  // namespace moec::cuda
