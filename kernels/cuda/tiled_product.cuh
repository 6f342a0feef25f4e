// A tile of a matrix product by a cluster of blocks, each of which takes a range of its depths.
#pragma once

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/tf32_tile.cuh"

namespace moec::cuda {

/// A result in f32 with an epilogue. `out` has no bias, and is aligned only if the epilogue's matrices are
/// too.
struct FusedResult {
  using Acc = float;

  Result<float> out;
  const float* bias;
  Epilogue epilogue;

  __device__ void store(int row, int col, Vector<float, 4> sums) const {
    if (row >= out.rows || col >= out.cols) return;
    const int count = min(4, out.cols - col);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (bias && j < count) sums.value[j] += bias[col + j];
    if (!epilogue.empty())
      apply_epilogue<float>(epilogue, row * out.stride + col, count, out.aligned && count == 4, sums);
    out.store(row, col, sums);
  }
};

/// Where a block leaves its sums of a tile: in c, or, if there is a `part`, in that [kM][kN] of shared
/// memory.
template <class C, class Shape>
struct TileTarget {
  using Acc = typename C::Acc;

  C c;
  Acc* part;
  int row, col;  // of the tile

  __device__ void store(int to_row, int to_col, const Vector<Acc, 4>& sums) const {
    if (part) {
      *reinterpret_cast<Vector<Acc, 4>*>(part + (to_row - row) * Shape::kN + to_col - col) = sums;
    } else {
      c.store(to_row, to_col, sums);
    }
  }
};

/// How a product is cut: `splits` neighbouring blocks of a cluster share a tile, each of them `depth` depths.
struct TileCut {
  int row_tiles;
  int tiles;
  int splits;
  int depth;

  __host__ __device__ int blocks() const { return tiles * splits; }
};

/// Kinds of tiles, with the engine for factors of any types, and whether clusters may share one.
struct SmallTiles {
  static constexpr int kM = 32, kN = 32;
  static constexpr bool kSplits = true;
  template <class A, class B, class C>
  using Engine = SmallTile<A, B, C>;
};
struct MediumTiles {
  static constexpr int kM = 64, kN = 64;
  static constexpr bool kSplits = false;
  template <class A, class B, class C>
  using Engine = MediumTile<A, B, C>;
};

/// A product cut into tiles of a kind.
template <class Tiles, class A, class B, class C>
struct CutProduct {
  using Target = TileTarget<C, Tiles>;
  using Engine = typename Tiles::template Engine<A, B, Target>;
  using Acc = typename C::Acc;
  static constexpr int kThreads = Engine::kThreads;
  static constexpr size_t kSharedBytes = Engine::kSharedBytes + sizeof(Acc) * Tiles::kM * Tiles::kN;
  static_assert(Engine::Shape::kM == Tiles::kM && Engine::Shape::kN == Tiles::kN);

  A a;
  B b;
  C c;
  TileCut cut;

  /// Computes block `block` of cut.blocks(), which may be past the end. All blocks of a cluster take part,
  /// each with the same number of splits.
  __device__ void run(int block, void* shared) const {
    const int tile = block / cut.splits, split = block % cut.splits;
    const int row = tile % cut.row_tiles * Tiles::kM, col = tile / cut.row_tiles * Tiles::kN;
    auto* part = cut.splits > 1
                     ? reinterpret_cast<Acc*>(static_cast<unsigned char*>(shared) + Engine::kSharedBytes)
                     : nullptr;
    const Target target{c, part, row, col};
    if (tile < cut.tiles) {
      const int begin = split * cut.depth;
      A left = a;
      B right = b;
      left.data = a.at(0, begin);
      right.data = b.at(0, begin);
      left.depth = right.depth = min(cut.depth, a.depth - begin);
      Engine::run(left, right, target, row, col, shared);
    }
    if (cut.splits > 1) add_parts(target, tile < cut.tiles, split);
  }

 private:
  /// The blocks of a tile share out its sums; each adds the parts of all in order.
  __device__ void add_parts(const Target& target, bool valid, int split) const {
    sync_cluster();
    const int first = cluster_rank() - split;
    for (int i = (split * kThreads + static_cast<int>(threadIdx.x)) * 4; valid && i < Tiles::kM * Tiles::kN;
         i += cut.splits * kThreads * 4) {
      Vector<Acc, 4> sums = load<4>(cluster_shared(target.part, first) + i, 0);
#pragma unroll 4
      for (int s = 1; s < cut.splits; ++s) {
        const auto next = load<4>(cluster_shared(target.part, first + s) + i, 0);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums.value[j] += next.value[j];
      }
      c.store(target.row + i / Tiles::kN, target.col + i % Tiles::kN, sums);
    }
    sync_cluster();  // the parts have been read
  }
};

}  // namespace moec::cuda
