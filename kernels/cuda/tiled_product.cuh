// A tile of a matrix product by a cluster of blocks, each of which takes a range of its depths.
#pragma once

#include <type_traits>

#include "kernels/cuda/dense_tile.cuh"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/normed_part.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/simt_tile.cuh"

namespace moec::cuda {

/// Where a product goes: rows x cols, to which a row of `bias` is added if there is one, and the old contents
/// if `accumulate`; then comes the epilogue. Elements outside are not written. `aligned`: runs of four are
/// aligned in all matrices. `kWhole`: they are, and no tile has elements outside.
template <class T, class TBias, EpilogueKind kEpilogue, bool kWhole = false>
struct ProductResult {
  using Element = T;
  using Acc = Accumulator<T>;
  static constexpr EpilogueKind kKind = kEpilogue;
  /// Whether the factors come first: operands of every element would hold them up.
  static constexpr bool kFetchLate = kEpilogue == EpilogueKind::kBackward;

  /// What is fetched ahead of the four sums that go with it.
  struct Ahead {
    Packed<TBias, 4> bias = {};
    EpilogueRun<T> run;
  };

  T* data;
  int64_t stride;
  int rows;
  int cols;
  const TBias* bias;
  bool accumulate;  // without an epilogue
  bool aligned;
  Epilogue epilogue;

  /// Whether all of a tile of kM x kN from (row, col) on can be read and written in aligned runs.
  template <int kM, int kN>
  __device__ bool whole(int row, int col) const {
    return kWhole || (aligned && row + kM <= rows && col + kN <= cols);
  }

  /// For the run at (row, col); `whole` as of its tile.
  __device__ Ahead fetch(int row, int col, bool whole) const {
    const Run run = run_at(row, col, whole);
    Ahead ahead;
    if (bias) ahead.bias = load_run(bias + col, run.count, run.whole);
    if constexpr (kEpilogue != EpilogueKind::kNone) {
      ahead.run = fetch_run<kEpilogue, T>(epilogue, run.place, run.count, run.whole);
    } else if (accumulate) {
      ahead.run.operand = load_run(data + run.place, run.count, run.whole);
    }
    return ahead;
  }

  /// With an ActivationPair of with_activation().
  template <class Activation>
  __device__ void store(Activation, int row, int col, bool whole, Vector<Acc, 4> sums,
                        const Ahead& ahead) const {
    const Run run = run_at(row, col, whole);
    if (bias) add(ahead.bias, sums);
    if constexpr (kEpilogue != EpilogueKind::kNone) {
      apply_epilogue<kEpilogue, Activation>(epilogue, ahead.run, run.place, run.count, run.whole, sums);
    } else if (accumulate) {
      add(ahead.run.operand, sums);
    }
    store_run(data + run.place, run.count, run.whole, sums);
  }

 private:
  struct Run {
    int64_t place;
    int count;  // of the four, that are inside
    bool whole;
  };
  __device__ Run run_at(int row, int col, bool whole) const {
    if constexpr (kWhole) return {row * stride + col, 4, true};
    const int count = whole ? 4 : row < rows ? max(0, min(4, cols - col)) : 0;
    return {row * stride + col, count, whole || (aligned && count == 4)};
  }

  template <class Added>
  __device__ static void add(const Packed<Added, 4>& packed, Vector<Acc, 4>& sums) {
    Acc added[4];
    unpack<Added, 4, Acc>(packed, added);
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.value[j] += added[j];
  }
};

/// Where the sums over all depths of the factor a's rows go, null where nobody wants them, and whether they
/// are added to what is there.
template <class T>
struct DepthSums {
  T* out = nullptr;
  bool accumulate = false;
};

/// How a product is cut: the `splits` blocks of a cluster share a tile, each of them `depth` depths.
struct TileCut {
  int row_tiles;
  int col_tiles;
  int splits;
  int depth;

  int64_t blocks() const { return int64_t{splits} * row_tiles * col_tiles; }
  dim3 grid() const {
    return dim3(static_cast<unsigned>(splits), static_cast<unsigned>(row_tiles),
                static_cast<unsigned>(col_tiles));
  }
};

/// Whether products of f32 factors go to the tensor cores, which on devices before compute capability 8.0
/// know no bf16.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kDenseF32 = false;
#else
constexpr bool kDenseF32 = true;
#endif

/// Kinds of tiles with the engine for factors of any types.
template <class Dense, class Simt>
struct Tiles {
  static constexpr int kM = Dense::kM, kN = Dense::kN, kDepth = Dense::kDepth;
  static_assert(Simt::kM == kM && Simt::kN == kN && Simt::kThreads == Dense::kThreads);

  template <class T, class A, class B>
  static constexpr bool kAre =
      std::is_same_v<typename A::Element, T>&& std::is_same_v<typename B::Element, T>;
  template <class A, class B>
  static constexpr bool kDense = kAre<bf16, A, B> || (kAre<float, A, B> && (kDenseF32 || kIsNormed<A>));
  template <class A, class B>
  using Engine = std::conditional_t<kDense<A, B>, DenseTile<Dense, A, B>, SimtTile<Simt, A, B>>;
};
using SmallTiles = Tiles<DenseShape<32, 32, 128, 16, 16, 2, 2>, SimtSmall>;
using DeepTiles = Tiles<DenseShape<32, 32, 256, 16, 16, 2, 2>, SimtSmall>;  // of bf16 factors
using MediumTiles = Tiles<DenseShape<64, 64, 128, 16, 16, 1>, SimtShape<64, 64, 32, 8, 4, 4>>;
/// Of fewer rows, each of which costs more, where they are normalised.
using WideTiles = Tiles<DenseShape<32, 128, 128, 16, 16, 1>, SimtShape<32, 128, 32, 8, 4, 4>>;
/// Of many depths: warps that own more read less of shared memory.
using LongTiles = Tiles<DenseShape<64, 64, 128, 32, 32, 1, 4>, SimtShape<64, 64, 32, 8, 4, 4>>;

/// A product cut into tiles of a kind, and with it DepthSums if kSumsDepths, for which the engine must be
/// DenseTile.
template <class Tiles, class A, class B, class C, bool kSumsDepths = false>
struct CutProduct {
  using Engine = typename Tiles::template Engine<A, B>;
  using Shape = typename Engine::Shape;
  using Acc = typename Engine::Acc;
  static constexpr bool kDense = Tiles::template kDense<A, B>;
  static constexpr int kThreads = Engine::kThreads, kRuns = Engine::kRuns;
  static_assert(Shape::kM == Tiles::kM && Shape::kN == Tiles::kN);

  A a;
  B b;
  C c;
  TileCut cut;
  DepthSums<typename C::Element> depth_sums = {};

  /// Shared memory of a block.
  size_t shared_bytes() const {
    return Engine::kSharedBytes + (kSumsDepths ? sizeof(Acc) * kRowSums : 0) +
           (cut.splits > 1 ? sizeof(Acc) * Tiles::kM * Tiles::kN : 0);
  }

  /// Computes the part that a block of cut.grid() has.
  __device__ void run(void* shared) const {
    run(shared, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
  }

  /// The same for part `split` of a tile.
  __device__ void run(void* shared, int split, int row_tile, int col_tile) const {
    const int row = row_tile * Tiles::kM, col = col_tile * Tiles::kN;
    const bool splits = cut.splits > 1;
    if (splits) arrive_at_cluster();
    const int begin = split * cut.depth;
    A left = a;
    B right = b;
    left.data = a.at(0, begin);
    right.data = b.at(0, begin);
    left.depth = right.depth = min(cut.depth, a.depth - begin);
    if constexpr (kIsNormed<A>) left.writes = col == 0;
    auto* const row_sums = reinterpret_cast<Acc*>(static_cast<unsigned char*>(shared) + Engine::kSharedBytes);
    auto* const parts = reinterpret_cast<Vector<Acc, 4>*>(row_sums + (kSumsDepths ? kRowSums : 0));
    const bool whole = c.template whole<Tiles::kM, Tiles::kN>(row, col);
    typename C::Ahead ahead[kRuns];
    Vector<Acc, 4> sums[kRuns];
    const auto fetch = [&] {
#pragma unroll
      for (int r = 0; r < kRuns; ++r)
        if (owner(r) == split) ahead[r] = c.fetch(row + run_row<Shape>(r), col + run_col<Shape>(r), whole);
      if (splits) wait_for_cluster();  // all blocks have started, and can be written to
    };
    if constexpr (kDense) {
      Engine::template multiply<kSumsDepths, C::kFetchLate>(left, right, row, col, shared, sums, fetch,
                                                            cluster_shared(row_sums + split * Tiles::kM, 0));
    } else {
      fetch();
      Engine::multiply(left, right, row, col, shared, sums);
    }
    if (splits) {
      add_parts(split, parts, sums);
    } else if (kSumsDepths) {
      __syncthreads();
    }
    if (kSumsDepths && split == 0 && col == 0) store_row_sums(row, row_sums);
    with_activation<C::kKind>(c.epilogue, [&](auto activation) {
#pragma unroll
      for (int r = 0; r < kRuns; ++r)
        if (owner(r) == split)
          c.store(activation, row + run_row<Shape>(r), col + run_col<Shape>(r), whole, sums[r], ahead[r]);
    });
  }

 private:
  /// The runs of a warp with one number are a unit; the blocks of a tile own equal shares of the units, and
  /// add up and store what they own.
  static constexpr int kWarps = kThreads / 32, kUnits = kWarps * kRuns;
  static_assert(kUnits % kMostClusterBlocks == 0);
  static constexpr int kRowSums = kMostClusterBlocks * Tiles::kM;

  __device__ static int unit(int r) { return r * kWarps + static_cast<int>(threadIdx.x) / 32; }
  __device__ int owner(int r) const { return unit(r) * cut.splits / kUnits; }

  /// Adds up row_sums[splits][kM] of the rows from `row` on.
  __device__ void store_row_sums(int row, const Acc* row_sums) const {
    const int i = static_cast<int>(threadIdx.x);
    if (depth_sums.out == nullptr || i >= Tiles::kM || row + i >= c.rows) return;
    Acc sum = row_sums[i];
    for (int s = 1; s < cut.splits; ++s) sum += row_sums[s * Tiles::kM + i];
    auto* to = depth_sums.out + row + i;
    if (depth_sums.accumulate) sum += widen(*to);
    *to = to_storage<typename C::Element>(sum);
  }

  /// Sends all sums to their owners, to `parts`[split][units of a share][32] of their shared memory, and adds
  /// up those of this block's share in the order of splits.
  __device__ void add_parts(int split, Vector<Acc, 4>* parts, Vector<Acc, 4> (&sums)[kRuns]) const {
    const int share = kUnits / cut.splits, lane = static_cast<int>(threadIdx.x) % 32;
    const auto place = [&](int from, int r) { return (from * share + unit(r) % share) * 32 + lane; };
#pragma unroll
    for (int r = 0; r < kRuns; ++r) cluster_shared(parts, owner(r))[place(split, r)] = sums[r];
    sync_cluster();
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      if (owner(r) != split) continue;
      sums[r] = parts[place(0, r)];
#pragma unroll 4
      for (int s = 1; s < cut.splits; ++s) {
        const auto& part = parts[place(s, r)];
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[r].value[j] += part.value[j];
      }
    }
  }
};

}  // namespace moec::cuda
