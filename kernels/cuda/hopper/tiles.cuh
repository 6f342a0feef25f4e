// The tiles of a product over rows that are grouped by expert (grouped.cuh): where they are, in which order
// clusters of blocks take them, and which of them are split.
#pragma once

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda::hopper {

/// What the rows of an expert, offsets[e] to offsets[e+1], are to its product.
enum class Grouped {
  kRows,   // the rows of a and c; b and c's columns are the expert's weight
  kDepth,  // the depth, along which both factors have rows; c is the expert's weight gradient
};

/// The tile of a block: kM x kN of c, of which it loads kK depths in a step.
struct Tile {
  static constexpr int kM = 128, kN = 256, kK = 64;
  static constexpr int kBlocks = 2;     // of a cluster
  static constexpr int kConsumers = 2;  // warpgroups that multiply
  static constexpr int kConsumerWarps = 4 * kConsumers;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kBytesA = kM * kRunBytes, kBytesB = kN * kRunBytes, kStepBytes = kBytesA + kBytesB;
};

struct GroupedProblem {
  const int32_t* offsets;  // [experts + 1]; nullptr: each expert has the next `share` rows, up to the last
  int experts;
  int rows;   // of c; kRows: unused
  int cols;   // of c
  int depth;  // kDepth: unused
  int share = 0, last = 0;

  /// The first row of an expert, or behind the last one's rows.
  __device__ int begin(int expert) const {
    return offsets == nullptr ? min(expert * share, last) : __ldg(offsets + expert);
  }
};

/// Where a tile is: rows from `row` on, of which its expert has those before row_end, and columns from `col`
/// on of c; and the depths.
struct TilePlace {
  int expert, row, row_end, col;
  int depth_begin, depth;
};

/// The tiles of the block's cluster, in the order of experts, bands of rows, columns, rows: what runs
/// together shares rows and columns. Keeps little, as registers are scarce. kHasEnd: only tiles before number
/// `end`.
template <Grouped kGrouped, bool kHasEnd = false>
class Tiles {
 public:
  explicit __device__ Tiles(int end = 0) : end_(end) {}

  /// Finds the block's next tile; false if there is none. kRows: has at least two steps, for consume_rows().
  __device__ bool next(const GroupedProblem& problem, TilePlace* place) {
    const int col_tiles = ceil_div(problem.cols, Tile::kN);
    for (; expert_ < problem.experts; ++expert_) {
      if (kHasEnd && tile_ >= end_) return false;
      const int begin = problem.begin(expert_), end = problem.begin(expert_ + 1);
      const int rows = kGrouped == Grouped::kRows ? end - begin : problem.rows;
      const int row_tiles = ceil_div(rows, kClusterRows);
      if (tile_ < row_tiles * col_tiles) {
        const int most_rows = band_rows(col_tiles), per_band = most_rows * col_tiles;
        const int band = tile_ / per_band, in_band = tile_ % per_band;
        const int rows_of_band = min(most_rows, row_tiles - band * most_rows);
        const int row = (band * most_rows + in_band % rows_of_band) * kClusterRows +
                        static_cast<int>(cluster_rank()) * Tile::kM;
        const int col = in_band / rows_of_band * Tile::kN;
        *place = kGrouped == Grouped::kRows
                     ? TilePlace{expert_, begin + row, end, col, 0, max(problem.depth, 2 * Tile::kK)}
                     : TilePlace{expert_, row, problem.rows, col, begin, end - begin};
        tile_ += static_cast<int>(gridDim.x) / Tile::kBlocks;
        return true;
      }
      tile_ -= row_tiles * col_tiles;
      if (kHasEnd) end_ -= row_tiles * col_tiles;
    }
    return false;
  }

  /// kRows: how many tiles an expert has.
  __device__ static int count(const GroupedProblem& problem, int expert) {
    const int rows = problem.begin(expert + 1) - problem.begin(expert);
    return ceil_div(rows, kClusterRows) * ceil_div(problem.cols, Tile::kN);
  }
  /// The block's place in the tile of this number, which there is.
  __device__ static TilePlace find(const GroupedProblem& problem, int number) {
    Tiles tiles;
    tiles.tile_ = number;
    TilePlace place = {};
    tiles.next(problem, &place);
    return place;
  }

 private:
  static constexpr int kClusterRows = Tile::kM * Tile::kBlocks;
  /// Row tiles of clusters that are swept together over all columns. Where columns are few, the rows are what
  /// a product reads most of: all of a row's tiles are taken at once, lest it be read again in the next wave.
  /// Otherwise an expert's weight is, which many rows share.
  __device__ static int band_rows(int col_tiles) {
    constexpr int kFewColumns = 8, kRows = 8;
    return col_tiles <= kFewColumns ? 1 : kRows;
  }

  __device__ static int ceil_div(int a, int b) { return (a + b - 1) / b; }

  int tile_ = static_cast<int>(blockIdx.x) / Tile::kBlocks;  // counted from the expert's first
  int end_;                                                  // likewise
  int expert_ = 0;
};

/// Clusters that products are split for. A constant, so that results are the same on every device.
constexpr int kClusters = 66;

/// The last tiles of a product kRows, where they would leave most clusters idle: each is split along depth
/// into parts, the units that clusters take turns at when they are done with the tiles before. tail.cuh adds
/// up the parts.
struct alignas(8) Tail {
  int begin, tiles, parts;  // the first tile's number; how many tiles; parts of each

  __device__ int units() const { return tiles * parts; }
};

/// Parts that tiles of this depth are split into at most. Below kLeastDepth a split saves less than it costs
/// to add the parts.
__host__ __device__ constexpr int most_parts(int depth) {
  constexpr int kLeastDepth = 32 * Tile::kK, kLeastPart = 8 * Tile::kK, kMost = 16;
  if (depth < kLeastDepth) return 1;
  return depth / kLeastPart < kMost ? depth / kLeastPart : kMost;
}

/// A warp: the tail of a product kRows.
__device__ inline Tail find_tail(const GroupedProblem& problem) {
  int tiles = 0;
  for (auto expert = static_cast<int>(lane_id()); expert < problem.experts; expert += 32)
    tiles += Tiles<Grouped::kRows>::count(problem, expert);
  tiles = group_reduce<32>(tiles);
  const int left = tiles % kClusters;
  const int parts = left == 0 ? 0 : min(kClusters / left, most_parts(problem.depth));
  return parts > 1 ? Tail{tiles - left, left, parts} : Tail{tiles, 0, 1};
}

}  // namespace moec::cuda::hopper
