// One tile of a matrix product of f32 factors on the tensor cores, nearly as exact as f32 arithmetic.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "kernels/cuda/mma_tile.cuh"
#include "kernels/cuda/simt_tile.cuh"

namespace moec::cuda {

/// A tile of kM x kN, a step of kK depths at a time, kStages of them in shared memory; each warp owns kWarpM
/// x kWarpN sums of one of kSlices groups of warps that share out the depths of a step. Devices without TF32
/// compute the tile in the shape `PortableShape`.
template <int kTileM, int kTileN, int kTileK, int kWarpRows, int kWarpCols, int kDepthSlices,
          class PortableShape>
struct Tf32Shape {
  static constexpr int kM = kTileM, kN = kTileN, kK = kTileK;
  static constexpr int kWarpM = kWarpRows, kWarpN = kWarpCols;
  static constexpr int kSlices = kDepthSlices;
  static constexpr int kStages = 3;
  static constexpr int kSliceWarps = kM / kWarpM * (kN / kWarpN);
  static constexpr int kThreads = 32 * kSliceWarps * kSlices;
  using Portable = PortableShape;
};
using Tf32Medium = Tf32Shape<64, 64, 32, 32, 16, 1, SimtMedium>;
using Tf32Small = Tf32Shape<32, 32, 64, 32, 16, 4, SimtSmall>;

/// The values of a fragment as sums of two TF32 numbers each, which keep 22 of the 24 bits at least.
template <int kRegisters>
struct SplitFragment {
  uint32_t big[kRegisters], small[kRegisters];

  __device__ void split(int i, float value) {
    big[i] = round_tf32(value);
    small[i] = __float_as_uint(value - __uint_as_float(big[i]));
  }
};

/// Computes tiles of the product of two f32 factors A and B into a result C, with all threads of a block.
/// Factors are sums of two TF32 numbers, of whose products all but that of the small ones are added up.
template <class TileShape, class A, class B, class C>
class Tf32Tile {
  using Pipeline = MmaPipeline<TileShape, A, B>;
  using Portable = SimtTile<typename TileShape::Portable, A, B, C>;
  static constexpr int kSumStride = TileShape::kN + 8;  // so that a warp writes its sums to different banks

 public:
  using Shape = TileShape;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kBlocksPerSm = 2;
  static constexpr size_t kSharedBytes = std::max({Pipeline::kSharedBytes, Portable::kSharedBytes,
                                                   sizeof(float) * Shape::kSlices* Shape::kM* kSumStride});
  static_assert(Portable::kThreads == kThreads && Shape::Portable::kM == Shape::kM &&
                Shape::Portable::kN == Shape::kN);

  /// The tile from (row, col) on; `shared` is free before and after.
  __device__ static void run(const A& a, const B& b, const C& c, int row, int col, void* shared) {
#if __CUDA_ARCH__ >= 800
    Sums sums = {}, corrections = {};
    Pipeline::run(a, b, row, col, shared, [&](const float* tile_a, const float* tile_b) {
      multiply_step(tile_a, tile_b, sums, corrections);
    });
    __syncthreads();  // the last step is no longer needed
    add_slices(c, row, col, sums, corrections, static_cast<float*>(shared));
#else
    Portable::run(a, b, c, row, col, shared);
#endif
  }

 private:
  static constexpr int kMmaM = Shape::kWarpM / 16, kMmaN = Shape::kWarpN / 8;
  using Sums = float[kMmaM][kMmaN][4];

  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32 % Shape::kSliceWarps; }
  __device__ static int slice() { return static_cast<int>(threadIdx.x) / 32 / Shape::kSliceWarps; }
  __device__ static int warp_row() { return warp() / (Shape::kN / Shape::kWarpN) * Shape::kWarpM; }
  __device__ static int warp_col() { return warp() % (Shape::kN / Shape::kWarpN) * Shape::kWarpN; }

  /// Tensor cores round sums towards zero. Only products of few depths and the small corrections are summed
  /// there, so that errors stay below those of rounding.
  __device__ static void multiply_step(const float* tile_a, const float* tile_b, Sums& sums,
                                       Sums& corrections) {
    constexpr int kDepths = Shape::kK / Shape::kSlices;
    Sums parts = {};
#pragma unroll
    for (int k = 0; k < kDepths; k += 8)
      multiply_depths(tile_a, tile_b, slice() * kDepths + k, parts, corrections);
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmaN; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[i][j][r] += parts[i][j][r];
      }
    }
  }

  __device__ static void multiply_depths(const float* tile_a, const float* tile_b, int k, Sums& parts,
                                         Sums& corrections) {
    SplitFragment<4> a[kMmaM], b[kMmaN / 2];
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
      float values[4];
      load_a<A::kDepthMajor>(values, tile_a, Pipeline::StepA::kStride, warp_row() + i * 16, k);
#pragma unroll
      for (int r = 0; r < 4; ++r) a[i].split(r, values[r]);
    }
#pragma unroll
    for (int j = 0; j < kMmaN / 2; ++j) {
      float values[4];
      load_b<B::kDepthMajor>(values, tile_b, Pipeline::StepB::kStride, warp_col() + j * 16, k);
#pragma unroll
      for (int r = 0; r < 4; ++r) b[j].split(r, values[r]);
    }
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmaN; ++j) {
        const uint32_t *big = b[j / 2].big + j % 2 * 2, *small = b[j / 2].small + j % 2 * 2;
        multiply_add_tf32(parts[i][j], a[i].big, big[0], big[1]);
        multiply_add_tf32(corrections[i][j], a[i].small, big[0], big[1]);
        multiply_add_tf32(corrections[i][j], a[i].big, small[0], small[1]);
      }
    }
  }

  /// Adds the sums of all slices in order, by way of `memory`, and stores them.
  __device__ static void add_slices(const C& c, int row, int col, const Sums& sums, const Sums& corrections,
                                    float* memory) {
    constexpr int kSlice = Shape::kM * kSumStride;
    const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmaN; ++j) {
#pragma unroll
        for (int r = 0; r < 4; r += 2) {
          const int to_row = warp_row() + i * 16 + group + r * 4, to_col = warp_col() + j * 8 + pair;
          *reinterpret_cast<Vector<float, 2>*>(memory + slice() * kSlice + to_row * kSumStride + to_col) = {
              sums[i][j][r] + corrections[i][j][r], sums[i][j][r + 1] + corrections[i][j][r + 1]};
        }
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x) * 4; i < Shape::kM * Shape::kN; i += kThreads * 4) {
      const float* from = memory + i / Shape::kN * kSumStride + i % Shape::kN;
      auto total = load<4>(from, 0);
#pragma unroll
      for (int s = 1; s < Shape::kSlices; ++s) {
        const auto next = load<4>(from + s * kSlice, 0);
#pragma unroll
        for (int j = 0; j < 4; ++j) total.value[j] += next.value[j];
      }
      c.store(row + i / Shape::kN, col + i % Shape::kN, total);
    }
  }
};

/// Engines of small and medium tiles for factors of any type.
template <class A, class B>
constexpr bool kSplitsFactors =
    std::is_same_v<typename A::Element, float>&& std::is_same_v<typename B::Element, float>;
template <class A, class B, class C>
using SmallTile =
    std::conditional_t<kSplitsFactors<A, B>, Tf32Tile<Tf32Small, A, B, C>, SimtTile<SimtSmall, A, B, C>>;
template <class A, class B, class C>
using MediumTile =
    std::conditional_t<kSplitsFactors<A, B>, Tf32Tile<Tf32Medium, A, B, C>, SimtTile<SimtMedium, A, B, C>>;

}  // namespace moec::cuda
