// One tile of a matrix product in plain arithmetic: true f32 or f64 sums for any types of factors.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

/// A tile of kM x kN, a step of kK depths at a time. Each thread owns kThreadM x kThreadN sums; kSlices
/// groups of threads share out the depths of a step, so that small products still fill the device.
template <int kTileM, int kTileN, int kTileK, int kThreadRows, int kThreadCols, int kDepthSlices>
struct SimtShape {
  static constexpr int kM = kTileM, kN = kTileN, kK = kTileK;
  static constexpr int kThreadM = kThreadRows, kThreadN = kThreadCols;
  static constexpr int kSlices = kDepthSlices;
  static constexpr int kSliceThreads = kM / kThreadM * (kN / kThreadN);
  static constexpr int kThreads = kSliceThreads * kSlices;
};
using SimtMedium = SimtShape<64, 64, 32, 8, 4, 2>;
using SimtSmall = SimtShape<32, 32, 64, 8, 4, 8>;

/// Place of element (i, k) in a tile [depths][kRows] of shared memory. Groups of four rows are permuted by
/// depth, so that columns of four depths can be written without bank conflicts.
template <int kRows>
__device__ inline int swizzled(int i, int k) {
  return k * kRows + (i ^ (k & ~3 & 31));
}

/// A step of a factor, kRows x kDepth, on its way through registers to shared memory.
template <class F, int kRows, int kDepth, int kThreads>
class Staged {
 public:
  using Acc = Accumulator<typename F::Element>;

  __device__ void load(const F& factor, int i, int k) {
#pragma unroll
    for (int v = 0; v < kPacks; ++v) packs_[v] = factor.load4(i + row(v), k + depth(v));
  }

  template <class Sum>
  __device__ void store(Sum* tile) const {
#pragma unroll
    for (int v = 0; v < kPacks; ++v) {
      if constexpr (F::kDepthMajor) {
        Vector<Sum, 4> out;
#pragma unroll
        for (int j = 0; j < 4; ++j) out.value[j] = packs_[v].value[j];
        *reinterpret_cast<Vector<Sum, 4>*>(tile + swizzled<kRows>(row(v), depth(v))) = out;
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) tile[swizzled<kRows>(row(v), depth(v) + j)] = packs_[v].value[j];
      }
    }
  }

 private:
  static constexpr int kPacks = kRows * kDepth / 4 / kThreads;
  static constexpr int kPerRun = (F::kDepthMajor ? kRows : kDepth) / 4;
  static_assert(kPacks * 4 * kThreads == kRows * kDepth);

  __device__ static int run(int v) { return (static_cast<int>(threadIdx.x) + v * kThreads) / kPerRun; }
  __device__ static int place(int v) { return (static_cast<int>(threadIdx.x) + v * kThreads) % kPerRun * 4; }
  __device__ static int row(int v) { return F::kDepthMajor ? place(v) : run(v); }
  __device__ static int depth(int v) { return F::kDepthMajor ? run(v) : place(v); }

  Vector<Acc, 4> packs_[kPacks];
};

/// Computes tiles of the product of two factors A and B, with all threads of a block.
template <class TileShape, class A, class B>
class SimtTile {
  static constexpr int kStep = TileShape::kK * (TileShape::kM + TileShape::kN);

 public:
  using Shape = TileShape;
  using Acc = Accumulator<typename A::Element>;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kBlocksPerSm = sizeof(Acc) == 4 ? 2 : 1;  // at least, as far as registers go
  static constexpr size_t kSharedBytes =
      sizeof(Acc) * std::max(2 * kStep, Shape::kSlices* Shape::kM* Shape::kN);
  /// Runs of four neighbouring sums that a thread gets, as run_row() and run_col() tell.
  static constexpr int kRuns = Shape::kM * Shape::kN / 4 / kThreads;
  static_assert(kRuns * 4 * kThreads == Shape::kM * Shape::kN);

  /// The sums of the tile from (row, col) on. `shared` is free before, and after the next __syncthreads().
  __device__ static void multiply(const A& a, const B& b, int row, int col, void* shared,
                                  Vector<Acc, 4> (&runs)[kRuns]) {
    auto* memory = static_cast<Acc*>(shared);
    Acc sums[Shape::kThreadM][Shape::kThreadN] = {};
    __syncthreads();
    Staged<A, Shape::kM, Shape::kK, kThreads> next_a;
    Staged<B, Shape::kN, Shape::kK, kThreads> next_b;
    next_a.load(a, row, 0);
    next_b.load(b, col, 0);
    next_a.store(memory);
    next_b.store(memory + Shape::kM * Shape::kK);
    __syncthreads();
    Acc *current = memory, *other = memory + kStep;
    for (int depth = Shape::kK; depth - Shape::kK < a.depth; depth += Shape::kK) {
      const bool more = depth < a.depth;
      if (more) {
        next_a.load(a, row, depth);
        next_b.load(b, col, depth);
      }
      multiply_step(current, current + Shape::kM * Shape::kK, sums);
      if (more) {
        next_a.store(other);
        next_b.store(other + Shape::kM * Shape::kK);
      }
      __syncthreads();
      Acc* const swap = current;
      current = other;
      other = swap;
    }
    add_slices(sums, memory, runs);
  }

  /// Puts the tile from (row, col) on into c; `shared` is free before and after.
  template <class C>
  __device__ static void run(const A& a, const B& b, const C& c, int row, int col, void* shared) {
    Vector<Acc, 4> runs[kRuns];
    multiply(a, b, row, col, shared, runs);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) c.store(row + run_row<Shape>(r), col + run_col<Shape>(r), runs[r]);
  }

 private:
  __device__ static int run_index(int r) { return static_cast<int>(threadIdx.x) + r * kThreads; }

  static constexpr int kColThreads = Shape::kN / Shape::kThreadN;

  __device__ static int slice() { return static_cast<int>(threadIdx.x) / Shape::kSliceThreads; }
  /// Rows (columns) of a thread lie in groups of four, spread over the tile.
  __device__ static int own_row(int group) {
    const int thread = static_cast<int>(threadIdx.x) % Shape::kSliceThreads / kColThreads;
    return group * (Shape::kM / (Shape::kThreadM / 4)) + thread * 4;
  }
  __device__ static int own_col(int group) {
    const int thread = static_cast<int>(threadIdx.x) % kColThreads;
    return group * (Shape::kN / (Shape::kThreadN / 4)) + thread * 4;
  }

  __device__ static void multiply_step(const Acc* a, const Acc* b,
                                       Acc (&sums)[Shape::kThreadM][Shape::kThreadN]) {
    constexpr int kDepths = Shape::kK / Shape::kSlices;
#pragma unroll
    for (int i = 0; i < kDepths; ++i) {
      const int k = slice() * kDepths + i;
      Vector<Acc, 4> rows[Shape::kThreadM / 4], cols[Shape::kThreadN / 4];
#pragma unroll
      for (int g = 0; g < Shape::kThreadM / 4; ++g)
        rows[g] = *reinterpret_cast<const Vector<Acc, 4>*>(a + swizzled<Shape::kM>(own_row(g), k));
#pragma unroll
      for (int g = 0; g < Shape::kThreadN / 4; ++g)
        cols[g] = *reinterpret_cast<const Vector<Acc, 4>*>(b + swizzled<Shape::kN>(own_col(g), k));
#pragma unroll
      for (int r = 0; r < Shape::kThreadM; ++r) {
#pragma unroll
        for (int j = 0; j < Shape::kThreadN; ++j)
          sums[r][j] += rows[r / 4].value[r % 4] * cols[j / 4].value[j % 4];
      }
    }
  }

  /// Calls put(row, col, four sums) for this thread's sums.
  template <class Put>
  __device__ static void store_own(const Acc (&sums)[Shape::kThreadM][Shape::kThreadN], Put&& put) {
#pragma unroll
    for (int r = 0; r < Shape::kThreadM; ++r) {
#pragma unroll
      for (int g = 0; g < Shape::kThreadN / 4; ++g) {
        Vector<Acc, 4> pack;
#pragma unroll
        for (int j = 0; j < 4; ++j) pack.value[j] = sums[r][g * 4 + j];
        put(own_row(r / 4) + r % 4, own_col(g), pack);
      }
    }
  }

  /// Adds the sums of all slices, in order.
  __device__ static void add_slices(const Acc (&sums)[Shape::kThreadM][Shape::kThreadN], Acc* memory,
                                    Vector<Acc, 4> (&runs)[kRuns]) {
    constexpr int kPacks = Shape::kM * Shape::kN / 4;
    auto* partial = reinterpret_cast<Vector<Acc, 4>*>(memory);
    store_own(sums, [&](int i, int j, const Vector<Acc, 4>& pack) {
      partial[slice() * kPacks + (i * Shape::kN + j) / 4] = pack;
    });
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      runs[r] = partial[run_index(r)];
#pragma unroll
      for (int s = 1; s < Shape::kSlices; ++s) {
#pragma unroll
        for (int j = 0; j < 4; ++j) runs[r].value[j] += partial[s * kPacks + run_index(r)].value[j];
      }
    }
  }
};

}  // namespace moec::cuda
