// One tile of a matrix product of bf16 factors on the tensor cores, summed in f32, and how steps of factors
// come to tensor cores through shared memory.
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
/// bytes, so that the eight that ldmatrix reads at once lie in different banks.
template <class F, int kRows, int kDepth, int kThreads>
struct MmaStep {
  using T = typename F::Element;
  static constexpr int kRun = F::kDepthMajor ? kRows : kDepth;
  static constexpr int kRuns = F::kDepthMajor ? kDepth : kRows;
  static constexpr int kStride = kRun + 8;
  static constexpr int kElements = kRuns * kStride;

  /// Starts to copy the elements from (i, k) on. Each thread copies the same place of some runs.
  __device__ static void copy_async(const F& factor, int i, int k, T* tile) {
    constexpr int kThreadsPerRun = kRun / F::kRun, kPass = kThreads / kThreadsPerRun;
    static_assert(kThreads % kThreadsPerRun == 0 && kRuns % kPass == 0);
    const int thread = static_cast<int>(threadIdx.x);
    const int run = thread / kThreadsPerRun, place = thread % kThreadsPerRun * F::kRun;
    i += F::kDepthMajor ? place : run;
    k += F::kDepthMajor ? run : place;
    T* to = tile + run * kStride + place;
    const auto for_each_run = [&](auto&& copy) {
#pragma unroll
      for (int v = 0; v < kRuns; v += kPass)
        copy(i + (F::kDepthMajor ? 0 : v), k + (F::kDepthMajor ? v : 0), v);
    };
    if (factor.aligned) {
      const T* from = factor.at(i, k);
      for_each_run([&](int row, int depth, int v) {
        const bool valid = factor.left(row, depth) > 0;
        copy16_async(to + v * kStride, valid ? from + v * factor.stride : factor.data, valid);
      });
    } else {
      for_each_run([&](int row, int depth, int v) { factor.copy_async(row, depth, to + v * kStride); });
    }
  }
};

/// Streams the steps of two factors of one type through shared memory, kStages of them at a time.
template <class Shape, class A, class B>
struct MmaPipeline {
  using T = typename A::Element;
  using StepA = MmaStep<A, Shape::kM, Shape::kK, Shape::kThreads>;
  using StepB = MmaStep<B, Shape::kN, Shape::kK, Shape::kThreads>;
  static constexpr int kStage = StepA::kElements + StepB::kElements;
  static constexpr size_t kSharedBytes = sizeof(T) * Shape::kStages * kStage;

  /// Calls multiply(step of a from `row` on, step of b from `col` on) for all depths in order; `shared` is
  /// free before.
  template <class Multiply>
  __device__ static void run(const A& a, const B& b, int row, int col, void* shared, Multiply&& multiply) {
    auto* stages = static_cast<T*>(shared);
    const int steps = (a.depth + Shape::kK - 1) / Shape::kK;
    const auto copy_step = [&](int step) {
      T* stage = stages + step % Shape::kStages * kStage;
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
      const T* stage = stages + step % Shape::kStages * kStage;
      multiply(stage, stage + StepA::kElements);
    }
    wait_copies<0>();
  }
};

/// Computes tiles of the product of two bf16 factors A and B into a result C, with all threads of a block.
template <class TileShape, class A, class B, class C>
class MmaTile {
  using Pipeline = MmaPipeline<TileShape, A, B>;
  using StepA = typename Pipeline::StepA;
  using StepB = typename Pipeline::StepB;

 public:
  using Shape = TileShape;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kBlocksPerSm = Shape::kBlocksPerSm;
  static constexpr size_t kSharedBytes = Pipeline::kSharedBytes;

  /// The tile from (row, col) on; `shared` is free before and after.
  __device__ static void run(const A& a, const B& b, const C& c, int row, int col, void* shared) {
    float sums[kMmaM][kMmaN][4] = {};
    Pipeline::run(a, b, row, col, shared,
                  [&](const bf16* tile_a, const bf16* tile_b) { multiply_step(tile_a, tile_b, sums); });
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
