// Products of an f32 matrix that has few columns, such as the gradients of a router's logits, with a bf16
// matrix: they move memory and do little else. A warp has 64 columns of the result. It reads its factors
// straight to the fragments of mma.cuh, whose columns and depths it numbers so that a lane reads and writes
// 16 bytes in a row. An f32 factor goes as the three bf16 that it is the sum of.
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda {
namespace {

constexpr int64_t kMostColumns = 64;       // of the f32 matrix
constexpr int64_t kFewElements = 1 << 18;  // of the large matrix, which other kernels read as fast
constexpr int kWarpColumns = 64;
constexpr int kTiles = kWarpColumns / 8;  // results of products side by side
constexpr int kDepth = 16;                // of a product
constexpr int kTerms = 3;

__device__ int lane_group() { return static_cast<int>(threadIdx.x) % kWarp / 4; }
__device__ int lane_pair() { return static_cast<int>(threadIdx.x) % 4; }

/// The lower or the upper halves of two words as a word.
template <bool kUpper>
__device__ uint32_t halves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, kUpper ? 0x7632 : 0x5410);
}

__device__ uint32_t word(const uint4& run, int i) {
  return i == 0 ? run.x : i == 1 ? run.y : i == 2 ? run.z : run.w;
}

/// The pair x, y as pairs of bf16 that add up to it: each has the leading 8 bits of what is left.
__device__ void split(float x, float y, uint32_t (&terms)[kTerms]) {
#pragma unroll
  for (uint32_t& term : terms) {
    term = halves<true>(__float_as_uint(x), __float_as_uint(y));
    x -= __uint_as_float(term << 16);
    y -= __uint_as_float(term & 0xffff0000u);
  }
}

// ---- dx[R,N] = dy[R,K] w[K,N] ---------------------------------------------------------------------

struct NarrowInput {
  const float* dy;
  const bf16* w;
  bf16* dx;
  int rows, depth, cols;
};

constexpr int kInputWarps = 4, kInputRows = 64;  // of a block

/// The places in memory of a lane's depths, four neighbours, are depths pair * 2 + {0, 1, 8, 9} of mma.cuh;
/// column j of tile t is column t / 4 * 32 + j / 2 * 8 + t % 4 * 2 + j % 2 of the warp's, so that a lane has
/// two runs of eight.
template <int kSteps>
__global__ void __launch_bounds__(kInputWarps* kWarp) multiply_narrow_input(const NarrowInput product) {
  begin_kernel();
  const int group = lane_group(), pair = lane_pair();
  const int first =
      (static_cast<int>(blockIdx.y) * kInputWarps + static_cast<int>(threadIdx.x) / kWarp) * kWarpColumns;
  if (first >= product.cols) return;

  uint32_t w[kSteps][kTiles][2];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const int col = first + run * 32 + group / 2 * 8;
      uint4 depths[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int depth = step * kDepth + 4 * pair + i;
        depths[i] = depth < product.depth && col < product.cols
                        ? *reinterpret_cast<const uint4*>(product.w + int64_t{depth} * product.cols + col)
                        : uint4{};
      }
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t x = word(depths[2 * half], tile), y = word(depths[2 * half + 1], tile);
          w[step][run * 4 + tile][half] = group % 2 == 0 ? halves<false>(x, y) : halves<true>(x, y);
        }
      }
    }
  }

  const bool vectors = product.depth % 4 == 0;
  const int begin = static_cast<int>(blockIdx.x) * kInputRows, end = min(begin + kInputRows, product.rows);
#pragma unroll
  for (int at = 0; at < kInputRows; at += 16) {
    const int row = begin + at + group;
    float sums[kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t fragment[4][kTerms];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + i * 8, depth = step * kDepth + 4 * pair;
        const float* from = product.dy + int64_t{r} * product.depth + depth;
        const int count = r < end ? product.depth - depth : 0;
        float4 dy = {};
        if (vectors) {
          if (count > 0) dy = *reinterpret_cast<const float4*>(from);
        } else {
          if (count > 0) dy.x = from[0];
          if (count > 1) dy.y = from[1];
          if (count > 2) dy.z = from[2];
          if (count > 3) dy.w = from[3];
        }
        split(dy.x, dy.y, fragment[i]);
        split(dy.z, dy.w, fragment[i + 2]);
      }
#pragma unroll
      for (int term = kTerms - 1; term >= 0; --term) {
        const uint32_t a[4] = {fragment[0][term], fragment[1][term], fragment[2][term], fragment[3][term]};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          multiply_add(sums[tile], a, w[step][tile][0], w[step][tile][1]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + half * 8;
      if (r >= end) continue;
#pragma unroll
      for (int run = 0; run < 2; ++run) {
        const int col = first + run * 32 + pair * 8;
        uint32_t out[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          out[i] = pack_bf16(sums[run * 4 + i][2 * half], sums[run * 4 + i][2 * half + 1]);
        if (col < product.cols)
          *reinterpret_cast<uint4*>(product.dx + int64_t{r} * product.cols + col) =
              make_uint4(out[0], out[1], out[2], out[3]);
      }
    }
  }
}

cudaError_t launch_input(const Product& product, const CudaContext& context) {
  const NarrowInput operands = {static_cast<const float*>(product.a.data),
                                static_cast<const bf16*>(product.b.data),
                                static_cast<bf16*>(const_cast<void*>(product.c.data)),
                                static_cast<int>(product.m()),
                                static_cast<int>(product.k()),
                                static_cast<int>(product.n())};
  const dim3 grid(static_cast<unsigned>(ceil_div(product.m(), kInputRows)),
                  static_cast<unsigned>(ceil_div(product.n(), kInputWarps * kWarpColumns)));
  const auto launch_steps = [&]<int kSteps>() {
    return launch_grid(context, multiply_narrow_input<kSteps>, grid, kInputWarps * kWarp, 0, operands);
  };
  if (product.k() <= kDepth) return launch_steps.template operator()<1>();
  if (product.k() <= 2 * kDepth) return launch_steps.template operator()<2>();
  return launch_steps.template operator()<kMostColumns / kDepth>();
}

// ---- dw[M,N] = dy[R,M]^T x[R,N] -------------------------------------------------------------------

template <class T>
struct NarrowWeight {
  const float* dy;
  const bf16* x;
  T* dw;
  int depth, rows, cols;
  bool accumulate;
};

constexpr int kWeightWarps = 16, kWeightRows = 16;
constexpr int kWeightSums = kWeightRows * kWarpColumns;  // of a block, and of each of its warps

/// A cluster has 16 rows and 64 columns of the result, and its warps take turns at the depths; their sums are
/// added in order. A step's depth k of a lane (see mma.cuh) is row 4 pair + {0, 1, 2, 3}; column j of tile t
/// is column 8 j + t of the warp's.
template <class T>
__global__ void __launch_bounds__(kWeightWarps* kWarp) multiply_narrow_weight(const NarrowWeight<T> product) {
  begin_kernel();
  const int group = lane_group(), pair = lane_pair();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, blocks = cluster_blocks();
  const int first_row = static_cast<int>(blockIdx.y) * kWeightRows;
  const int first_col = static_cast<int>(blockIdx.x) / blocks * kWarpColumns;
  const int col = first_col + 8 * group, stride = blocks * kWeightWarps * kDepth;

  float sums[kTiles][4] = {};
#pragma unroll 2
  for (int depth = (cluster_rank() * kWeightWarps + warp) * kDepth + 4 * pair;
       depth < product.depth + 4 * pair; depth += stride) {
    uint4 x[4];
    float dy[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t at = depth + i;
      const bool exists = at < product.depth;
      x[i] = exists && col < product.cols
                 ? *reinterpret_cast<const uint4*>(product.x + at * product.cols + col)
                 : uint4{};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + group + half * 8;
        dy[i][half] = exists && row < product.rows ? product.dy[at * product.rows + row] : 0.0f;
      }
    }
    uint32_t fragment[4][kTerms];
#pragma unroll
    for (int i = 0; i < 4; ++i) split(dy[i / 2 * 2][i % 2], dy[i / 2 * 2 + 1][i % 2], fragment[i]);
    const auto multiply_tiles = [&](int tile, uint32_t b0, uint32_t b1) {
#pragma unroll
      for (int term = kTerms - 1; term >= 0; --term) {
        const uint32_t a[4] = {fragment[0][term], fragment[1][term], fragment[2][term], fragment[3][term]};
        multiply_add(sums[tile], a, b0, b1);
      }
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t v[4] = {word(x[0], i), word(x[1], i), word(x[2], i), word(x[3], i)};
      multiply_tiles(2 * i, halves<false>(v[0], v[1]), halves<false>(v[2], v[3]));
      multiply_tiles(2 * i + 1, halves<true>(v[0], v[1]), halves<true>(v[2], v[3]));
    }
  }

  auto* parts = static_cast<float*>(dynamic_shared());  // of warps, by tile, element, lane
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i)
    parts[warp * kWeightSums + i * kWarp + static_cast<int>(threadIdx.x) % kWarp] = sums[i / 4][i % 4];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kWeightSums; i += kWeightWarps * kWarp) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWeightWarps; ++w) sum += parts[w * kWeightSums + i];
    parts[i] = sum;
  }
  sync_cluster();
  for (int i = cluster_rank() * kWeightWarps * kWarp + static_cast<int>(threadIdx.x); i < kWeightSums;
       i += blocks * kWeightWarps * kWarp) {
    const int row = i / kWarpColumns, at = i % kWarpColumns;
    if (first_row + row >= product.rows || first_col + at >= product.cols) continue;
    const int lane = row % 8 * 4 + at / 16, element = row / 8 * 2 + at / 8 % 2;
    float sum = 0;
#pragma unroll
    for (int block = 0; block < kMostClusterBlocks; ++block)
      if (block < blocks) sum += cluster_shared(parts, block)[(at % 8 * 4 + element) * kWarp + lane];
    T& to = product.dw[int64_t{first_row + row} * product.cols + first_col + at];
    to = to_storage<T>(product.accumulate ? widen(to) + sum : sum);
  }
  sync_cluster();  // the others have read
}

template <class T>
cudaError_t launch_weight(const Product& product, const CudaContext& context) {
  const NarrowWeight<T> operands = {static_cast<const float*>(product.a.data),
                                    static_cast<const bf16*>(product.b.data),
                                    static_cast<T*>(const_cast<void*>(product.c.data)),
                                    static_cast<int>(product.k()),
                                    static_cast<int>(product.m()),
                                    static_cast<int>(product.n()),
                                    product.accumulate};
  const int cluster = has_clusters(context) ? kMostClusterBlocks : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div(product.n(), kWarpColumns) * cluster),
                  static_cast<unsigned>(ceil_div(product.m(), kWeightRows)));
  return launch_clusters(context, multiply_narrow_weight<T>, grid, cluster, kWeightWarps * kWarp,
                         kWeightWarps * kWeightSums * sizeof(float), operands);
}

}  // namespace

bool is_narrow(const Product& product) {
  const auto fits = [](const ProductMatrix& m) {
    return m.dtype == fb::DType::BF16 && m.row_stride == 0 && m.cols % 8 == 0 &&
           reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  };
  const bool weight = product.form == ProductForm::kWeight;
  if (!weight && (product.form != ProductForm::kInput || product.accumulate || !fits(product.c)))
    return false;
  if (weight && product.c.dtype != fb::DType::BF16 && product.c.dtype != fb::DType::F32) return false;
  return product.a.dtype == fb::DType::F32 && product.a.cols <= kMostColumns &&
         reinterpret_cast<uintptr_t>(product.a.data) % 16 == 0 && fits(product.b) && !product.bias &&
         product.epilogue.empty() && product.a.rows * product.n() >= kFewElements;
}

cudaError_t multiply_narrow(const Product& product, const CudaContext& context) {
  if (product.form == ProductForm::kInput) return launch_input(product, context);
  return product.c.dtype == fb::DType::F32 ? launch_weight<float>(product, context)
                                           : launch_weight<bf16>(product, context);
}

}  // namespace moec::cuda
