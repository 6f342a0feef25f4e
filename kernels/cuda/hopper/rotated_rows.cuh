// The epilogue (epilogue.cuh) of a product that makes packed queries, keys and values, whose heads of queries
// and keys are rotated by their positions.
#pragma once

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/rotation.cuh"

namespace moec::cuda::hopper {

/// Result rows of heads of kHeadDim elements. What is rotated has been rounded, as if it had been stored. A
/// part has whole heads, so a lane has both elements of a pair; kHalf: half a head apart, else neighbours.
template <int kHeadDim, bool kHalf>
struct StoreRotated : StoreRows {
  static constexpr int kHeads = kPieces * kPieceCols / kHeadDim;        // of a part
  static constexpr int kHeadPairs = kPieces * kPiecePairs / kHeads;     // of a lane in a head
  /// A turn rotates the pairs of all heads whose angles are the same.
  static constexpr int kTurns = kHalf ? kHeadPairs / 2 : kHeadPairs;

  Rotation rotation;
  uint32_t seq_len, reciprocal;  // (2^32 - 1) / seq_len
  int rotated_cols;              // of queries and keys; values follow

  /// Turn number `turn` of a part, all of whose pairs are at `pairs`.
  template <int kPairs>
  __device__ __forceinline__ void rotate(int turn, uint32_t (&pairs)[kPairs], const Part& part) const {
    if (part.empty() || part.col >= rotated_cols) return;
    const uint32_t position = position_of(part.row, turn % 2), lane = lane_id() % 4;
    const uint64_t* turns = rotation.turns + turn / 2 * (kHalf ? 8 : 4) + lane * (kHalf ? 2 : 1);
    const float2 angle = Rotation::angle(turns[0], position);
    const float2 next = kHalf ? Rotation::angle(turns[1], position) : float2{};
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      if (part.col + head * kHeadDim >= rotated_cols) break;
      uint32_t& first = pairs[head * kHeadPairs + turn];
      float2 x = unpack(first);
      if constexpr (kHalf) {
        uint32_t& second = pairs[head * kHeadPairs + kTurns + turn];
        float2 y = unpack(second);
        Rotation::rotate(angle, x.x, y.x);
        Rotation::rotate(next, x.y, y.y);
        second = pack(y.x, y.y);
      } else {
        Rotation::rotate(angle, x.x, x.y);
      }
      first = pack(x.x, x.y);
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
