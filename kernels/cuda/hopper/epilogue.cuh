// What becomes of the sums of a grouped product. A warp has 16 x 256 of them (wgmma.cuh says who has what)
// and a little shared memory of its own, through which results go out: panels of 16 rows of 128 bytes, laid
// out as TMA expects them.
//
// Results are written while the next tile is multiplied: their sums are rounded and kept in half as many
// registers, and the main loop (grouped.cuh) hands them to run() in pieces of 16 x 32. Registers are scarce
// there, so addresses are 32 bits wide and computed anew for each piece, unless its instructions are too many
// for the time of a step: the epilogue's Places then keep them. Weight gradients in f32 are handed to store()
// as they are, and the tensor cores wait.
//
// An epilogue says how many panels a warp has, and whether it streams so much that the factors are to be kept
// in L2. The warps of most send their panels themselves; where much is to be read and written, a mover does
// it for a whole warpgroup (swiglu_bwd.cuh).
#pragma once

#include "kernels/cuda/hopper/wgmma.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/gradient_squares.h"

namespace moec::cuda::hopper {

/// Rows of a warp and of a warpgroup in a tile, and bytes of their panels.
constexpr int kPanelRows = 16, kGroupRows = 64;
constexpr int kPanelBytes = kPanelRows * kRunBytes, kGroupPanelBytes = kGroupRows * kRunBytes;

/// Columns of a piece, and the pairs of them that each lane has: pair 2 * i + j is of columns 8 * i + lane %
/// 4 * 2 (and the next) in row lane / 4 + 8 * j.
constexpr int kPieceCols = 32, kPiecePairs = 8;
using Piece = uint32_t[kPiecePairs];
/// Pieces of a part.
constexpr int kPieces = 8;

/// The part of a warp in a tile, or of a warpgroup for an epilogue that has a mover: 256 columns and at most
/// 16 or 64 rows.
struct Part {
  int expert, row, row_end, col;

  __device__ bool empty() const { return row >= row_end; }
};
/// Of no tile.
constexpr Part kNoPart = {0, 0, 0, 0};

/// The lane in its warp; not worth a register between two uses.
__device__ inline uint32_t lane_id() {
  uint32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

/// Two values as bf16, the first in the lower half.
__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline float2 unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}

/// Place of 16-byte chunk 0 of row `row` in a panel; chunk c is at this ^ c * 16.
__device__ inline uint32_t panel_row(const unsigned char* panel, uint32_t row) {
  return shared_address(panel) + row * kRunBytes + row % 8 * 16;
}

/// The warp's stores but the last kPending have read their panels, which may be written again.
template <int kPending>
__device__ inline void reopen_panels() {
  if (elect_one()) wait_stores_read<kPending>();
  __syncwarp();
}

/// What the warp has written to panels may be sent.
__device__ inline void close_panels() {
  fence_shared_for_async();
  __syncwarp();
}

/// Where a lane writes the left half of a panel's pieces.
__device__ inline uint32_t piece_place(const unsigned char* panel) {
  const uint32_t lane = lane_id();
  return panel_row(panel, lane % 16) ^ lane / 16 * 16;
}

/// Writes a piece to the left or right half of a panel.
__device__ inline void write_piece(uint32_t place, int half, const Piece& pairs) {
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     place ^ (static_cast<uint32_t>(half) * 64 + i * 32)),
                 "r"(pairs[4 * i]), "r"(pairs[4 * i + 1]), "r"(pairs[4 * i + 2]), "r"(pairs[4 * i + 3])
                 : "memory");
}

/// A matrix of bf16 [rows, cols] that panels go to; rows behind a part's end stay as they are.
struct PanelsOut {
  CUtensorMap map;  // box: 64 columns x the rows of a panel
  bf16* data;
  int cols;

  /// The warp whose panel is closed: starts to write it to columns from `col` on, as one group of stores.
  __device__ void send(const unsigned char* panel, const Part& part, int col) const {
    if (part.row_end - part.row >= kPanelRows) {
      if (elect_one()) send_whole(panel, part, col);
    } else {
      write_rows(panel, part, col);
      if (elect_one()) commit_stores();
    }
  }

  /// One thread, for a panel all of whose rows are the part's.
  __device__ void send_whole(const unsigned char* panel, const Part& part, int col) const {
    store_box(map, panel, col, part.row, 0);
    commit_stores();
  }

  /// The warp: writes those of its 16 rows that are the part's.
  __device__ void write_rows(const unsigned char* panel, const Part& part, int col) const {
    constexpr uint32_t kChunks = kRunBytes / 16;
    const uint32_t lane = lane_id();
    const int rows = min(part.row_end - part.row, kPanelRows);
    const int chunk_col = col + static_cast<int>(lane % kChunks) * 8;
    if (chunk_col < cols) {
#pragma unroll 1
      for (int row = static_cast<int>(lane / kChunks); row < rows; row += 32 / kChunks)
        *reinterpret_cast<uint4*>(data + static_cast<int64_t>(part.row + row) * cols + chunk_col) =
            load_shared<uint4>(panel_row(panel, row) ^ lane % kChunks * 16);
    }
    __syncwarp();
  }
};

/// What epilogues have in common whose warps send their panels themselves.
struct WithoutMover {
  struct Barriers {
    __device__ void init() {}
  };
  static constexpr bool kMoves = false, kStreams = false;
  using Places = unsigned char*;  // the warp's panels
};

/// Result rows.
struct StoreRows : WithoutMover {
  static constexpr int kPanels = 1;
  PanelsOut c;

  __device__ void run(int piece, const Piece& sums, const Part& part, unsigned char* panels,
                      Barriers&) const {
    if (part.empty()) return;
    if (piece % 2 == 0) reopen_panels<0>();
    write_piece(piece_place(panels), piece % 2, sums);
    if (piece % 2 == 0) return;
    close_panels();
    c.send(panels, part, part.col + (piece - 1) * kPieceCols);
  }
};

/// The same of a product whose last tiles may be split (SplitsTail in grouped.cuh).
struct StoreSplitRows : StoreRows {
  float4* parts;
};

/// h = sums, with gate and up in turns, and y[rows, cols / 2] = silu(gate) * up.
struct StoreSwiglu : WithoutMover {
  static constexpr int kPanels = 2;
  PanelsOut h, y;

  /// The warp's panels, and where a lane writes in them: y of every fourth column. Kept, as many pieces are
  /// written in little time.
  struct Places {
    unsigned char* panels;
    uint32_t h, y;

    __device__ explicit Places(unsigned char* panels) : panels(panels), h(piece_place(panels)) {
      const uint32_t lane = lane_id();
      y = panel_row(panels + kPanelBytes, lane / 4) ^ lane % 4 * 2;
    }
  };

  __device__ void run(int piece, const Piece& sums, const Part& part, const Places& places, Barriers&) const {
    if (part.empty()) return;
    if (piece % 2 == 0) reopen_panels<0>();
    write_piece(places.h, piece % 2, sums);
#pragma unroll
    for (uint32_t i = 0; i < kPiecePairs; ++i) {
      const float2 pair = unpack(sums[i]);
      store_shared((places.y ^ (static_cast<uint32_t>(piece % 4) * 32 + i / 2 * 8)) + i % 2 * 8 * kRunBytes,
                   __bfloat16_as_ushort(__float2bfloat16_rn(pair.x * sigmoid<bf16>(pair.x) * pair.y)));
    }
    if (piece % 2 == 0) return;
    close_panels();
    h.send(places.panels, part, part.col + (piece - 1) * kPieceCols);
    if (piece % 4 == 3) y.send(places.panels + kPanelBytes, part, (part.col + (piece - 3) * kPieceCols) / 2);
  }
};

/// The sums [experts, row_pieces, col_pieces] of the squares of a gradient; a piece is a warp's part of a
/// tile.
struct Squares {
  double* sums;  // nullptr where none are wanted
  int row_pieces, col_pieces;

  __device__ double& of(const Part& part) const {
    const int band = part.expert * row_pieces + part.row / static_cast<int>(kSquaresRows);
    return sums[int64_t{band} * col_pieces + part.col / static_cast<int>(kSquaresCols)];
  }
};
static_assert(kSquaresRows == kPanelRows && kSquaresCols == kPieces * kPieceCols);

/// An expert's weight gradient [experts, rows, cols], f32 or bf16: overwritten, or each element added to
/// once. Two panels take turns.
template <class T>
struct StoreGradient : WithoutMover {
  static constexpr int kPanels = 2;
  static constexpr bool kRounds = sizeof(T) == 2;
  CUtensorMap map;  // box: 128 bytes of columns x 16 rows
  bool accumulate;
  Squares squares;

  __device__ bool skips(int depth) const { return accumulate && depth == 0; }

  /// A piece of rounded sums.
  __device__ void run(int piece, const Piece& sums, const Part& part, unsigned char* panels) const {
    unsigned char* panel = panels + piece / 2 % 2 * kPanelBytes;
    if (piece % 2 == 0) reopen_panels<1>();
    write_piece(piece_place(panel), piece % 2, sums);
    if (piece % 2 == 1) send(panel, part, part.col + (piece - 1) * kPieceCols);
  }

  /// After the pieces: all values of a part, which are pairs of bf16 or f32.
  template <class Values>
  __device__ void finish(Values& values, const Part& part) const {
    if (squares.sums == nullptr) return;
    const double sum = group_reduce<32>(squares_of(values));
    if (lane_id() == 0) squares.of(part) = sum;
  }

  /// Sums as they are.
  template <int kSums>
  __device__ void store(float (&sums)[kSums], const Part& part, unsigned char* panels) const {
    constexpr int kPanelCols = kRunBytes / sizeof(float), kPanelSums = kPanelCols / 2;
    const uint32_t lane = lane_id();
#pragma unroll
    for (int i = 0; i < kSums / kPanelSums; ++i) {
      unsigned char* panel = panels + i % 2 * kPanelBytes;
      reopen_panels<1>();
      const float* s = sums + i * kPanelSums;
      const uint32_t at = panel_row(panel, lane / 4) ^ lane % 4 * 8;
#pragma unroll
      for (uint32_t j = 0; j < 8; ++j)
        store_shared((at ^ j / 2 * 32) + j % 2 * 8 * kRunBytes, float2{s[2 * j], s[2 * j + 1]});
      send(panel, part, part.col + i * kPanelCols);
    }
    finish(sums, part);
  }

 private:
  __device__ void send(const unsigned char* panel, const Part& part, int col) const {
    close_panels();
    if (elect_one()) {
      accumulate ? add_box(map, panel, col, part.row, part.expert)
                 : store_box(map, panel, col, part.row, part.expert);
      commit_stores();
    }
  }

  /// What values are multiplied by where the sum of their squares overflows f32.
  static constexpr float kDown = 0x1p-80f;

  /// Of the values that are stored. Pinned, as the compiler would move the sum in front of the loop over
  /// steps, where the tensor cores wait for it.
  template <class Values>
  __device__ static double squares_of(Values& values) {
    pin(values);
    const float sum = sum_squares<false>(values);
    if (isfinite(sum)) return sum;
    return static_cast<double>(sum_squares<true>(values)) / (double{kDown} * kDown);
  }
  template <bool kScaled, class Values>
  __device__ static float sum_squares(const Values& values) {
    float low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < kPieces * kPiecePairs; ++i) {
      const float2 pair = pair_of<kScaled>(values, i);
      low = fmaf(pair.x, pair.x, low);
      high = fmaf(pair.y, pair.y, high);
    }
    return low + high;
  }
  /// Multiplied while packed, so that nothing is unpacked ahead of need and kept in registers.
  template <bool kScaled>
  __device__ static float2 pair_of(const uint32_t* rounded, int i) {
    if constexpr (!kScaled) return unpack(rounded[i]);
    const __nv_bfloat162 pair = reinterpret_cast<const __nv_bfloat162&>(rounded[i]);
    const __nv_bfloat162 scaled = __hmul2(pair, __float2bfloat162_rn(kDown));
    return unpack(reinterpret_cast<const uint32_t&>(scaled));
  }
  template <bool kScaled>
  __device__ static float2 pair_of(const float* sums, int i) {
    constexpr float kFactor = kScaled ? kDown : 1;
    return {kFactor * sums[2 * i], kFactor * sums[2 * i + 1]};
  }
};

}  // namespace moec::cuda::hopper
