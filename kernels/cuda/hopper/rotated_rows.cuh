// The epilogue (epilogue.cuh) of a product that makes packed queries, keys and values, whose heads of queries
// and keys are rotated by their positions.
#pragma once

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/rotation.cuh"

namespace moec::cuda::hopper {

/// Result rows. What is rotated has been rounded, as if it had been stored. kHeadDim: 0 where pairs are
/// neighbours; else the elements of a head, half of which lie between those of a pair: pieces of its first
/// half wait in their panels for those of its second.
template <int kHeadDim>
struct StoreRotated : WithoutMover {
  static constexpr int kPanels = kHeadDim == 128 ? 2 : 1;
  /// Pieces that go out together, and those between the elements of a pair.
  static constexpr int kTogether = 2 * kPanels, kApart = kHeadDim / 2 / kPieceCols;

  PanelsOut c;
  Rotation rotation;
  uint32_t seq_len, reciprocal;  // (2^32 - 1) / seq_len
  int rotated_cols;              // of queries and keys; values follow

  __device__ void run(int piece, const Piece& sums, const Part& part, unsigned char* panels,
                      Barriers&) const {
    if (part.empty()) return;
    const int col = part.col + piece * kPieceCols, place = piece % kTogether;
    if (place == 0) reopen_panels<0>();
    Piece out;
#pragma unroll
    for (int i = 0; i < kPiecePairs; ++i) out[i] = sums[i];
    if (col < rotated_cols) {
      if constexpr (kHeadDim == 0)
        rotate_neighbours(out, part.row, col & (rotation.head_dim - 1));
      else if (place >= kApart)
        rotate_halves(out, part.row, (place - kApart) * kPieceCols, panel_of(panels, place - kApart),
                      (place - kApart) % 2);
    }
    write_piece(piece_place(panel_of(panels, place)), place % 2, out);
    if (place != kTogether - 1) return;
    close_panels();
#pragma unroll
    for (int i = 0; i < kPanels; ++i)
      c.send(panel_of(panels, 2 * i), part, col + kPieceCols - (kPanels - i) * 2 * kPieceCols);
  }

 private:
  __device__ static unsigned char* panel_of(unsigned char* panels, int place) {
    return panels + place / 2 * kPanelBytes;
  }
  /// Of one of the lane's two rows.
  __device__ uint32_t position(int first_row, uint32_t half) const {
    const uint32_t row = static_cast<uint32_t>(first_row) + lane_id() / 4 + half * 8;
    const uint32_t left = row - __umulhi(row, reciprocal) * seq_len;  // the quotient is at most 1 too small
    return left < seq_len ? left : left - seq_len;
  }
  __device__ static uint32_t rotate(float2 angle, uint32_t pair) {
    float2 x = unpack(pair);
    Rotation::rotate(angle, x.x, x.y);
    return pack(x.x, x.y);
  }

  /// `col` is the piece's first column within its head.
  __device__ void rotate_neighbours(Piece& pairs, int row, int col) const {
    const uint32_t at[] = {position(row, 0), position(row, 1)};
    const uint64_t* turns = rotation.turns + col / 2 + lane_id() % 4;
#pragma unroll
    for (uint32_t i = 0; i < kPiecePairs; ++i)
      pairs[i] = rotate(Rotation::angle(turns[i / 2 * 4], at[i % 2]), pairs[i]);
  }

  /// Rotates a piece of the second half of a head and that of the first, which lies in `panel`.
  __device__ void rotate_halves(Piece& second, int row, int col, unsigned char* panel, int panel_half) const {
    __syncwarp();  // the panel has been written by other lanes
    const uint32_t lane = lane_id();
    const uint32_t from =
        panel_row(panel, lane / 4) ^ (static_cast<uint32_t>(panel_half) * 64 + lane % 4 * 4);
    const auto place = [from](uint32_t i) { return (from ^ i / 2 * 16) + i % 2 * 8 * kRunBytes; };
    Piece first;
#pragma unroll
    for (uint32_t i = 0; i < kPiecePairs; ++i) first[i] = load_shared<uint32_t>(place(i));
    const uint32_t at[] = {position(row, 0), position(row, 1)};
    const uint64_t* turns = rotation.turns + col + lane % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < kPiecePairs; ++i) {
      float2 x1 = unpack(first[i]), x2 = unpack(second[i]);
      Rotation::rotate(Rotation::angle(turns[i / 2 * 8], at[i % 2]), x1.x, x2.x);
      Rotation::rotate(Rotation::angle(turns[i / 2 * 8 + 1], at[i % 2]), x1.y, x2.y);
      first[i] = pack(x1.x, x1.y);
      second[i] = pack(x2.x, x2.y);
    }
#pragma unroll
    for (uint32_t i = 0; i < kPiecePairs; ++i) store_shared(place(i), first[i]);
    __syncwarp();
  }
};

}  // namespace moec::cuda::hopper
