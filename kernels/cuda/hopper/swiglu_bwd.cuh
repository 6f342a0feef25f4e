// The gradient of SwiGLU as an epilogue (epilogue.cuh): the sums are dy of y = silu(gate) * up.
//
// It reads and writes five times as much as the product's result would be, so each warpgroup that multiplies
// has a mover beside it, a warp that fetches h and sends dh and y in panels of the warpgroup's 64 rows.
// Panels of h, over which dh is written, lie in slots that a warpgroup and its mover hand to each other; y
// has one panel for every two pieces. Where an expert's last rows do not fill a panel, the warps write them,
// and the mover sends nothing. What the warps do to a slot is ordered before TMA's accesses by a fence of the
// mover, as all of them would wait at their own.
//
//   barrier         arrives                     waits           and then
//   loaded[slot]    mover, with the bytes       warpgroup       reads h, writes dh over it
//   written[slot]   each warp of the group      mover           sends dh, after an odd piece y
//   y_sent          mover, after an odd piece   warpgroup       writes y again
//
// That dh has been read from a slot needs no barrier: it is the mover who fills it again. A part has a whole
// number of turns of the slots, and that number is even, as is that of the panels of y: so phases are counted
// from the part's first piece.
#pragma once

#include "kernels/cuda/hopper/epilogue.cuh"

namespace moec::cuda::hopper {

/// dh and, with kMakesY, y again. h, dh: [rows, 2 * cols].
template <bool kMakesY>
struct StoreSwigluBwd {
  static constexpr int kSlots = 4;
  static constexpr int kPanels = kSlots + (kMakesY ? 1 : 0);
  static constexpr bool kMoves = true;
  /// h, dh and y would drive the factors, which many tiles read, from L2.
  static constexpr bool kStreams = true;
  static_assert(kPieces % (2 * kSlots) == 0);

  struct Barriers {
    Barrier loaded[kSlots], written[kSlots], y_sent;

    __device__ void init() {
      for (int i = 0; i < kSlots; ++i) {
        loaded[i].init(1);
        written[i].init(kWarpgroup / 32);
      }
      y_sent.init(1);
    }
  };

  using Places = unsigned char*;  // the warp's rows of the first panel

  CUtensorMap h;    // box: 64 columns x 64 rows
  PanelsOut dh, y;  // panels of 64 rows

  /// A warp of the warpgroup. `panels`: its rows of the first panel.
  __device__ void run(int piece, const Piece& sums, const Part& part, unsigned char* panels,
                      Barriers& barriers) const {
    if (part.empty()) return;
    const int slot = piece % kSlots;
    // Lanes of odd rows take the groups of 8 columns in another order, so that 16 lanes meet all banks.
    const uint32_t lane = lane_id();
    const bool turned = lane / 4 % 2 != 0;
    const uint32_t turn = turned ? 64 : 0;
    const uint32_t at = panel_row(panels + slot * kGroupPanelBytes, lane / 4) ^ (lane % 4 * 8 | turn);
    const uint32_t y_at = panel_row(panels + kSlots * kGroupPanelBytes, lane / 4) ^
                          (static_cast<uint32_t>(piece % 2 * 64) | lane % 4 * 4 | turn / 2);
    barriers.loaded[slot].wait(piece / kSlots % 2);
    // Of row lane / 4, and of the one 8 rows down; all before any is used, so that they are waited for once.
    constexpr uint32_t kGroups = kPieceCols / 8, kDown = 8 * kRunBytes;
    uint2 h0[kGroups], h1[kGroups];
#pragma unroll
    for (uint32_t i = 0; i < kGroups; ++i) {
      h0[i] = load_shared<uint2>(at ^ i * 32);
      h1[i] = load_shared<uint2>((at ^ i * 32) + kDown);
    }
    if (kMakesY && piece % 2 == 0) barriers.y_sent.wait(piece / 2 % 2 ^ 1);
#pragma unroll
    for (uint32_t i = 0; i < kGroups; ++i) {
      uint2 dh0, dh1;
      uint32_t y0, y1;
      bwd(h0[i], turned ? sums[2 * i ^ 4] : sums[2 * i], &dh0, &y0);
      bwd(h1[i], turned ? sums[2 * i + 1 ^ 4] : sums[2 * i + 1], &dh1, &y1);
      store_shared(at ^ i * 32, dh0);
      store_shared((at ^ i * 32) + kDown, dh1);
      if constexpr (kMakesY) {
        store_shared(y_at ^ i * 16, y0);
        store_shared((y_at ^ i * 16) + kDown, y1);
      }
    }
    __syncwarp();
    if (!whole(part)) {
      const int row = part.row + static_cast<int>(threadIdx.x / 32 % 4) * kPanelRows;
      const Part own = {part.expert, row, part.row_end, part.col};
      dh.write_rows(panels + slot * kGroupPanelBytes, own, 2 * (part.col + piece * kPieceCols));
      if (kMakesY && piece % 2 == 1)
        y.write_rows(panels + kSlots * kGroupPanelBytes, own, part.col + (piece - 1) * kPieceCols);
    }
    if (elect_one()) barriers.written[slot].arrive();
  }

  /// The mover, whose `panels` are those of the warpgroup: sends a piece when it is written, and fetches h
  /// for the piece that takes the slot of the one before. So the stores of a piece have the time of the next
  /// to read dh; y goes first, as stores are waited for in the order in which they start.
  __device__ void move(int piece, const Part& part, const Part& next, unsigned char* panels,
                       Barriers& barriers) const {
    const int slot = piece % kSlots;
    const bool makes_y = kMakesY && !part.empty() && piece % 2 == 1;
    if (!part.empty()) barriers.written[slot].wait(piece / kSlots % 2);
    if (elect_one()) {
      fence_shared_for_async();
      if (whole(part)) {
        if (makes_y)
          y.send_whole(panels + kSlots * kGroupPanelBytes, part, part.col + (piece - 1) * kPieceCols);
        dh.send_whole(panels + slot * kGroupPanelBytes, part, 2 * (part.col + piece * kPieceCols));
      } else {
        commit_stores();  // none, but a group to be counted
      }
      wait_stores_read<1>();
      if (makes_y) barriers.y_sent.arrive();
      const int coming = piece + kSlots - 1;
      if (coming < kPieces)
        fetch(coming, part, panels, barriers);
      else
        fetch(coming - kPieces, next, panels, barriers);
    }
    __syncwarp();
  }

 private:
  __device__ static bool whole(const Part& part) { return part.row_end - part.row >= kGroupRows; }

  __device__ void fetch(int piece, const Part& part, unsigned char* panels, Barriers& barriers) const {
    if (part.empty()) return;
    const int slot = piece % kSlots;
    barriers.loaded[slot].arrive_expecting(kGroupPanelBytes);
    load_box(h, barriers.loaded[slot], panels + slot * kGroupPanelBytes, 2 * (part.col + piece * kPieceCols),
             part.row, 0);
  }

  /// For two columns of dy: the gradients of gate and up in turns, and y.
  __device__ static void bwd(uint2 h, uint32_t dy, uint2* dh, uint32_t* y) {
    const __nv_bfloat162 d = reinterpret_cast<const __nv_bfloat162&>(dy);
    float y0, y1;
    *dh = {scaled(slopes(unpack(h.x), &y0), __low2bfloat162(d)),
           scaled(slopes(unpack(h.y), &y1), __high2bfloat162(d))};
    *y = pack(y0, y1);
  }
  /// Of y by gate and up. Rounded, so that a product of pairs makes both gradients.
  __device__ static uint32_t slopes(float2 h, float* y) {
    const float s = sigmoid<bf16>(h.x), silu = h.x * s;
    *y = silu * h.y;
    return pack(h.y * fmaf(silu, 1 - s, s), silu);
  }
  __device__ static uint32_t scaled(uint32_t pair, __nv_bfloat162 by) {
    const __nv_bfloat162 product = __hmul2(reinterpret_cast<const __nv_bfloat162&>(pair), by);
    return reinterpret_cast<const uint32_t&>(product);
  }
};

}  // namespace moec::cuda::hopper
