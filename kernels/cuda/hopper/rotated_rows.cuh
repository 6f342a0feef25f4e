// The epilogue (epilogue.cuh) of a product that makes packed queries, keys and values, whose heads of queries
// and keys are rotated by their positions.
#pragma once

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/rotation.cuh"

namespace moec::cuda::hopper {

/// Result rows of heads of kHeadDim elements. What is rotated has been rounded, as if it had been stored. A
/// part has whole heads, so that a lane has both elements of a pair: in two of its registers where they are
/// half a head apart (kHalf), else in one.
template <int kHeadDim, bool kHalf>
struct StoreRotated : StoreRows {
  static constexpr int kHeads = kPieces * kPieceCols / kHeadDim;     // of a part
  static constexpr int kHeadPairs = kPieces * kPiecePairs / kHeads;  // registers of a head
  /// A turn rotates two registers of each head, by the same angles.
  static constexpr int kTurns = kHeadPairs / 2;

  Rotation rotation;
  uint32_t seq_len, reciprocal;  // (2^32 - 1) / seq_len
  int rotated_cols;              // of queries and keys; values follow

  template <int kPairs>
  __device__ __forceinline__ void rotate(int turn, uint32_t (&pairs)[kPairs], const Part& part) const {
    if (part.empty() || part.col >= rotated_cols) return;
    const uint32_t lane = lane_id() % 4;
    float2 angles[2];
    if constexpr (kHalf) {
      const uint32_t position = position_of(part.row, turn % 2);
      const uint64_t* turns = rotation.turns + turn / 2 * 8 + lane * 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) angles[i] = Rotation::angle(turns[i], position);
    } else {
      const uint64_t turns = rotation.turns[turn * 4 + lane];
#pragma unroll
      for (int i = 0; i < 2; ++i) angles[i] = Rotation::angle(turns, position_of(part.row, i));
    }
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      if (part.col + head * kHeadDim >= rotated_cols) break;
      uint32_t* of_head = pairs + head * kHeadPairs;
      uint32_t &first = of_head[kHalf ? turn : 2 * turn],
               &second = of_head[kHalf ? kTurns + turn : 2 * turn + 1];
      float2 x = unpack(first), y = unpack(second);
      Rotation::rotate(angles[0], x.x, kHalf ? y.x : x.y);
      Rotation::rotate(angles[1], kHalf ? x.y : y.x, y.y);
      first = pack(x.x, x.y);
      second = pack(y.x, y.y);
    }
  }

 private:
  /// Of one of the lane's two rows.
  __device__ uint32_t position_of(int first_row, int half) const {
    const uint32_t row = static_cast<uint32_t>(first_row + half * 8) + lane_id() / 4;
    const uint32_t left = row - __umulhi(row, reciprocal) * seq_len;  // the quotient is at most 1 too small
    return left < seq_len ? left : left - seq_len;
  }
};

}  // namespace moec::cuda::hopper
