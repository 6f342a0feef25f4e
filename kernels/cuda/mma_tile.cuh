// One tile of a matrix product of bf16 factors on the tensor cores, summed in f32.
#pragma once

#include <cstddef>

#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

/// A tile of kM x kN, a step of kK depths at a time, kStages of them in shared memory; each warp owns kWarpM
/// x kWarpN.
template <int kTileM, int kTileN, int kWarpRows, int kWarpCols, int kMinBlocksPerSm>
struct MmaShape {
  static constexpr int kM = kTileM, kN = kTileN, kK = 32;
  static constexpr int kWarpM = kWarpRows, kWarpN = kWarpCols;
  static constexpr int kStages = 3;
  static constexpr int kThreads = 32 * (kM / kWarpM) * (kN / kWarpN);
  static constexpr int kBlocksPerSm = kMinBlocksPerSm;
};
using MmaLarge = MmaShape<128, 128, 64, 32, 2>;
using MmaSmall = MmaShape<64, 64, 32, 32, 4>;

/// A step of a factor in shared memory, laid out as in device memory. Runs along memory are padded by 16
/// bytes, so that eight of them, 16 bytes each, lie in different banks.
template <class F, int kRows, int kDepth, int kThreads>
struct MmaStep {
  static constexpr int kRun = F::kDepthMajor ? kRows : kDepth;
  static constexpr int kRuns = F::kDepthMajor ? kDepth : kRows;
  static constexpr int kStride = kRun + 8;
  static constexpr int kElements = kRuns * kStride;

  __device__ static void copy_async(const F& factor, int i, int k, bf16* tile) {
    constexpr int kChunks = kRuns * kRun / 8;
    static_assert(kChunks % kThreads == 0);
#pragma unroll
    for (int v = 0; v < kChunks / kThreads; ++v) {
      const int chunk = static_cast<int>(threadIdx.x) + v * kThreads;
      const int run = chunk / (kRun / 8), place = chunk % (kRun / 8) * 8;
      bf16* to = tile + run * kStride + place;
      if constexpr (F::kDepthMajor) {
        factor.copy_async(i + place, k + run, to);
      } else {
        factor.copy_async(i + run, k + place, to);
      }
    }
  }
};

/// Computes tiles of the product of two bf16 factors A and B into a result C, with all threads of a block.
template <class TileShape, class A, class B, class C>
class MmaTile {
  using StepA = MmaStep<A, TileShape::kM, TileShape::kK, TileShape::kThreads>;
  using StepB = MmaStep<B, TileShape::kN, TileShape::kK, TileShape::kThreads>;
  static constexpr int kStage = StepA::kElements + StepB::kElements;

 public:
  using Shape = TileShape;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kBlocksPerSm = Shape::kBlocksPerSm;
  static constexpr size_t kSharedBytes = sizeof(bf16) * Shape::kStages * kStage;

  /// The tile from (row, col) on; `shared` is free before and after.
  __device__ static void run(const A& a, const B& b, const C& c, int row, int col, void* shared) {
    auto* stages = static_cast<bf16*>(shared);
    float sums[kMmaM][kMmaN][4] = {};
    const int steps = (a.depth + Shape::kK - 1) / Shape::kK;
    const auto copy_step = [&](int step) {
      bf16* stage = stages + step % Shape::kStages * kStage;
      if (step < steps) {
        StepA::copy_async(a, row, step * Shape::kK, stage);
        StepB::copy_async(b, col, step * Shape::kK, stage + StepA::kElements);
      }
      commit_copies();
    };
    __syncthreads();
    for (int step = 0; step < Shape::kStages - 1; ++step) copy_step(step);
    for (int step = 0; step < steps; ++step) {
      wait_copies<Shape::kStages - 2>();
      __syncthreads();  // the step is there, and its predecessor, whose place is filled next, no longer
                        // needed
      copy_step(step + Shape::kStages - 1);
      const bf16* stage = stages + step % Shape::kStages * kStage;
      multiply_step(stage, stage + StepA::kElements, sums);
    }
    wait_copies<0>();
    store(c, row, col, sums);
  }

 private:
  static constexpr int kMmaM = Shape::kWarpM / 16, kMmaN = Shape::kWarpN / 8;

  __device__ static int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 / (Shape::kN / Shape::kWarpN) * Shape::kWarpM;
  }
  __device__ static int warp_col() {
    return static_cast<int>(threadIdx.x) / 32 % (Shape::kN / Shape::kWarpN) * Shape::kWarpN;
  }

  __device__ static void multiply_step(const bf16* tile_a, const bf16* tile_b,
                                       float (&sums)[kMmaM][kMmaN][4]) {
#pragma unroll
    for (int k = 0; k < Shape::kK; k += 16) {
      uint32_t a[kMmaM][4], b[kMmaN / 2][4];
#pragma unroll
      for (int i = 0; i < kMmaM; ++i)
        load_a<A::kDepthMajor>(a[i], tile_a, StepA::kStride, warp_row() + i * 16, k);
#pragma unroll
      for (int j = 0; j < kMmaN / 2; ++j)
        load_b<B::kDepthMajor>(b[j], tile_b, StepB::kStride, warp_col() + j * 16, k);
#pragma unroll
      for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
        for (int j = 0; j < kMmaN; ++j)
          multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  __device__ static void store(const C& c, int row, int col, const float (&sums)[kMmaM][kMmaN][4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmaN; ++j) {
        const int to_row = row + warp_row() + i * 16 + group, to_col = col + warp_col() + j * 8 + pair;
        c.store(to_row, to_col, Vector<float, 2>{sums[i][j][0], sums[i][j][1]});
        c.store(to_row + 8, to_col, Vector<float, 2>{sums[i][j][2], sums[i][j][3]});
      }
    }
  }
};

}  // namespace moec::cuda
