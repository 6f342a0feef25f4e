// Products over rows that are grouped by expert, on Hopper: c(m,n) = sum_k a(m,k) b(n,k), tile by tile.
//
// A block is one warpgroup that moves memory and two, the consumers, that multiply, each its half of the
// tile's rows. Two blocks form a cluster: their tiles lie below each other and share b, of which each loads
// half into both. Blocks are as many as the device has room for and take turns at the tiles, of which only
// the device knows how many there are. Of the warpgroup that moves memory
//   the first warp is the producer, which loads steps of 64 depths of both factors;
//   the next two are the consumers' movers, where the epilogue has them (swiglu_bwd.cuh).
//
// Steps go round a ring in shared memory.
//
//   barrier       arrives                             waits          and then
//   full[step]    the producer, with the bytes that   the consumers  multiply the step
//                 both blocks' producers load
//   empty[step]   each warp of both blocks'           the producer   loads another step there
//                 consumers
#pragma once

#include <climits>

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/tiles.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda::hopper {

/// Whether tiles may be split: the epilogue then has `parts`, where the sums of units go, 4 at a time.
/// [unit][block][consumer][i][thread] are the sums 4 * i to 4 * i + 3 of a thread; nullptr: none is split.
template <class Epilogue>
concept SplitsTail = requires(const Epilogue& epilogue) {
  epilogue.parts;
};

/// Whether a part is changed in place, in kTurns turns, before its pieces go out.
template <class Epilogue>
concept RotatesParts = requires {
  Epilogue::kTurns;
};

/// Shared memory of a block: the epilogue's panels and barriers, and as many steps as there is room for.
template <class Epilogue>
struct SharedMemory {
  static constexpr int kMost = 227 * 1024;
  static constexpr int kGroupPanelsBytes = Epilogue::kPanels * kGroupPanelBytes;  // of a consumer
  static constexpr int kPanelsBytes = Tile::kConsumers * kGroupPanelsBytes;
  static constexpr int kOtherBytes =
      kPanelsBytes + Tile::kConsumers * static_cast<int>(sizeof(typename Epilogue::Barriers)) +
      (SplitsTail<Epilogue> ? static_cast<int>(sizeof(Tail)) : 0);
  static constexpr int kStepBytes = Tile::kStepBytes + 2 * static_cast<int>(sizeof(Barrier));
  static constexpr int kSteps = (kMost - kOtherBytes) / kStepBytes;
  static constexpr int kBytes = kOtherBytes + kSteps * kStepBytes;
};

/// Number of this warp in its block, which the compiler then knows to be the same for all lanes.
__device__ inline int warp_id() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0); }

/// Calls use(value) with a constant, value being one of kBegin to kEnd - 1: for indices of registers.
template <int kBegin, int kEnd, class Use>
__device__ __forceinline__ void with_constant(int value, const Use& use) {
  constexpr int kMiddle = (kBegin + kEnd) / 2;
  if constexpr (kEnd - kBegin == 1)
    use(kBegin);
  else if (value < kMiddle)
    with_constant<kBegin, kMiddle>(value, use);
  else
    with_constant<kMiddle, kEnd>(value, use);
}

/// A step of a factor of kRows rows in shared memory, loaded by kShares blocks.
template <Along kAlong, int kRows, int kShares>
struct FactorStep {
  static constexpr bool kRunsAlongRows = kAlong == Along::kRows;
  static constexpr int kShareRows = kRows / kShares;
  /// Rows of the tensor map's box; runs along rows: depths.
  static constexpr int kBoxRows = kRunsAlongRows ? 64 : kShareRows;
  static_assert(kShareRows % (kRunsAlongRows ? 64 : 8) == 0);

  /// Starts to load a share into all kShares blocks. `policy`: nothing, or that of L2.
  template <class... Policy>
  __device__ static void load(const CUtensorMap& map, Barrier& barrier, unsigned char* to, int row, int depth,
                              int expert, int share, Policy... policy) {
    const int first = share * kShareRows;
    const auto load = [&](int x, int y, unsigned char* box) {
      if constexpr (kShares > 1)
        load_box_to_all<kShares>(map, barrier, box, x, y, expert, policy...);
      else
        load_box(map, barrier, box, x, y, expert, policy...);
    };
    if constexpr (kRunsAlongRows) {
#pragma unroll
      for (int i = first; i < first + kShareRows; i += 64) load(row + i, depth, to + i * kRunBytes);
    } else {
      load(depth, row + first, to + first * kRunBytes);
    }
  }
};

template <Along kAlongA, Along kAlongB, Grouped kGrouped, class Epilogue>
class GroupedBlock {
 public:
  using StepA = FactorStep<kAlongA, Tile::kM, 1>;
  using StepB = FactorStep<kAlongB, Tile::kN, Tile::kBlocks>;
  using Memory = SharedMemory<Epilogue>;

  /// `shared` is the dynamic shared memory of the block, aligned to kAtomBytes.
  __device__ GroupedBlock(unsigned char* shared, const GroupedProblem& problem, const Epilogue& epilogue)
      : problem_(problem), epilogue_(epilogue) {
    steps_ = shared;
    panels_ = steps_ + kSteps * Tile::kStepBytes;
    full_ = reinterpret_cast<Barrier*>(panels_ + Memory::kPanelsBytes);
    empty_ = full_ + kSteps;
    tail_ = reinterpret_cast<Tail*>(empty_ + kSteps);
    epilogue_barriers_ = reinterpret_cast<typename Epilogue::Barriers*>(tail_ + (kSplits ? 1 : 0));
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSteps; ++i) {
        full_[i].init(1);
        empty_[i].init(Tile::kConsumerWarps * Tile::kBlocks);
      }
      for (int i = 0; i < Tile::kConsumers; ++i) epilogue_barriers_[i].init();
      fence_barrier_init();
    }
    __syncwarp();
    sync_cluster();
  }

  /// All threads, once the kernel may read its operands.
  __device__ void begin() {
    if constexpr (kSplits) {
      if (warp_id() == 0) {
        const Tail tail = epilogue_.parts == nullptr ? Tail{INT_MAX, 0, 1} : find_tail(problem_);
        if (elect_one()) *tail_ = tail;
      }
      __syncthreads();
    }
  }

  /// One thread of the block: loads the steps of all tiles.
  __device__ void produce(const CUtensorMap& a, const CUtensorMap& b) {
    RingPlace<kSteps> place;
    WholeTiles tiles = whole_tiles();
    for (TilePlace tile; tiles.next(problem_, &tile);) load_tile(a, b, tile, place);
    if constexpr (kSplits) for_each_unit([&](int, const TilePlace& tile) { load_tile(a, b, tile, place); });
  }

  /// A warp, the mover of `consumer`: what the epilogue reads and writes for all of its parts. Before the
  /// first there is one to fetch for, and none to send.
  __device__ void move(int consumer) {
    unsigned char* panels = panels_of(consumer);
    Tiles<kGrouped> tiles;
    Part part = kNoPart;
    do {
      const Part next = next_part(tiles, consumer);
#pragma unroll 1
      for (int piece = 0; piece < kPieces; ++piece)
        epilogue_.move(piece, part, next, panels, epilogue_barriers_[consumer]);
      part = next;
    } while (!part.empty());
    if (elect_one()) wait_stores_read<0>();
  }

  /// A warpgroup, number `consumer`: multiplies and hands its sums to the epilogue.
  __device__ void consume(int consumer) {
    RingPlace<kSteps> place;
    if constexpr (Epilogue::kMoves)
      consume_rows_beside_mover(consumer);
    else if constexpr (kGrouped == Grouped::kRows)
      consume_rows(consumer, place);
    else
      consume_depths(consumer);
    if constexpr (kSplits) consume_units(consumer, place);
    if (elect_one()) wait_stores_read<0>();
  }

 private:
  static constexpr int kSteps = Memory::kSteps;
  static constexpr bool kSplits = SplitsTail<Epilogue>;
  /// Turns of a part that come before its pieces.
  static constexpr int kTurns = [] {
    if constexpr (RotatesParts<Epilogue>) return Epilogue::kTurns;
    return 0;
  }();

  /// The tiles of the cluster that are not split.
  using WholeTiles = Tiles<kGrouped, kSplits>;
  __device__ WholeTiles whole_tiles() const {
    if constexpr (kSplits) return WholeTiles(tail_->begin);
    return WholeTiles();
  }

  /// Calls use(unit, its place) for the cluster's units of the tail.
  template <class Use>
  __device__ void for_each_unit(const Use& use) const {
    for (int unit = cluster_id(); unit < tail_->units(); unit += cluster_count()) {
      const int parts = tail_->parts, part = unit % parts;
      TilePlace place = Tiles<Grouped::kRows>::find(problem_, tail_->begin + unit / parts);
      const int steps = steps_of(place), begin = steps * part / parts, end = steps * (part + 1) / parts;
      place.depth_begin = begin * Tile::kK;
      place.depth = (end - begin) * Tile::kK;
      use(unit, place);
    }
  }

  __device__ void load_tile(const CUtensorMap& a, const CUtensorMap& b, const TilePlace& tile,
                            RingPlace<kSteps>& place) {
    const int rank = static_cast<int>(cluster_rank());
    const int steps = steps_of(tile), expert_b = kGrouped == Grouped::kRows ? tile.expert : 0;
    const bool has_a = tile.row < tile.row_end;
#pragma unroll 1
    for (int step = 0; step < steps; ++step, place.advance()) {
      empty_[place.slot].wait(place.parity ^ 1);
      Barrier& full = full_[place.slot];
      full.arrive_expecting(has_a ? Tile::kStepBytes : Tile::kBytesB);
      unsigned char* to = step_at(place.slot);
      const int depth = tile.depth_begin + step * Tile::kK;
      const auto load = [&](auto... policy) {
        if (has_a) StepA::load(a, full, to, tile.row, depth, 0, 0, policy...);
        StepB::load(b, full, to + Tile::kBytesA, tile.col, depth, expert_b, rank, policy...);
      };
      if constexpr (Epilogue::kStreams)
        load(keep_in_l2());
      else
        load();
    }
  }

  __device__ unsigned char* step_at(int index) const { return steps_ + index * Tile::kStepBytes; }

  /// The sums of a warp's 16 x kN part of a tile; see multiply() for who has what.
  using Sums = float[Tile::kN / 2];
  static_assert(Tile::kN == kPieces * kPieceCols);

  /// The last may be partial.
  __device__ static int steps_of(const TilePlace& tile) { return (tile.depth + Tile::kK - 1) / Tile::kK; }

  /// The part of this warp, or of the consumer where it has a mover, in a tile.
  __device__ static Part part_of(const TilePlace& tile, int consumer) {
    const int row = tile.row + consumer * kGroupRows;
    return {tile.expert, Epilogue::kMoves ? row : row + warp_id() % 4 * kPanelRows, tile.row_end, tile.col};
  }
  /// Whether any of the consumer's rows are the expert's; the products of others would only cost power.
  __device__ static bool has_rows(const TilePlace& tile, int consumer) {
    return tile.row + consumer * kGroupRows < tile.row_end;
  }
  /// The consumer's next part that has rows.
  __device__ Part next_part(Tiles<kGrouped>& tiles, int consumer) const {
    for (TilePlace tile; tiles.next(problem_, &tile);)
      if (const Part part = part_of(tile, consumer); !part.empty()) return part;
    return kNoPart;
  }

  __device__ unsigned char* panels_of(int consumer) const {
    return panels_ + consumer * Memory::kGroupPanelsBytes;
  }
  /// The panels of this warp; those that a mover moves are of the consumer, and have this warp's rows here.
  __device__ unsigned char* warp_panels(int consumer) const {
    if constexpr (Epilogue::kMoves) return panels_of(consumer) + warp_id() % 4 * kPanelBytes;
    return panels_ + (warp_id() - 4) * Epilogue::kPanels * kPanelBytes;
  }

  /// A part's sums as pairs of bf16.
  using Rounded = uint32_t[kPieces * kPiecePairs];
  __device__ __forceinline__ static void round(const Sums& sums, Rounded& rounded) {
#pragma unroll
    for (int i = 0; i < Tile::kN / 4; ++i) rounded[i] = pack(sums[2 * i], sums[2 * i + 1]);
  }
  __device__ static const Piece& piece_of(const Rounded& rounded, int piece) {
    return reinterpret_cast<const Piece&>(rounded[piece * kPiecePairs]);
  }

  /// kRows. The sums of a tile are rounded and handed to the epilogue, in pieces, while the next is
  /// multiplied: a piece at a time after a step has been started. What loops is kept the same for all lanes,
  /// as instructions between steps are what the tensor cores wait for.
  __device__ void consume_rows(int consumer, RingPlace<kSteps>& place) {
    const typename Epilogue::Places places(warp_panels(consumer));
    auto& barriers = epilogue_barriers_[consumer];
    WholeTiles tiles = whole_tiles();
    TilePlace tile;
    if (!tiles.next(problem_, &tile)) return;
    const int steps = steps_of(tile);
    const int pieces_a_step = (kTurns + kPieces + steps - 2) / (steps - 1);
    Rounded rounded = {};
    Part part = kNoPart, next = part_of(tile, consumer);
    for (bool more = true; more;) {
      const bool idle = !has_rows(tile, consumer);
      Sums sums;
      full_[place.slot].wait(place.parity);
      if (!idle) multiply_step(sums, place.slot, consumer, false);
      int piece = -kTurns, previous = place.slot;
      place.advance();
#pragma unroll 1
      for (int step = 1; step < steps; ++step) {
        full_[place.slot].wait(place.parity);
        if (!idle) multiply_step(sums, place.slot, consumer, true);
        wait_products<1>();
        release(previous);
#pragma unroll 1
        for (const int end = min(piece + pieces_a_step, kPieces); piece < end; ++piece)
          run_piece(piece, rounded, part, places, barriers);
        previous = place.slot;
        place.advance();
      }
      part = next;
      more = tiles.next(problem_, &tile);
      next = more ? part_of(tile, consumer) : kNoPart;
      wait_products<0>(sums);
      release(previous);
      round(sums, rounded);
    }
    run_pieces(rounded, part, places, barriers);
  }

  /// The same where a mover moves the pieces: they are spread evenly over all steps, so that memory is used
  /// all the time. A loop of its own: what one loop for both makes of the other's is slower.
  __device__ void consume_rows_beside_mover(int consumer) {
    const typename Epilogue::Places places(warp_panels(consumer));
    auto& barriers = epilogue_barriers_[consumer];
    Tiles<kGrouped> tiles;
    TilePlace tile;
    if (!tiles.next(problem_, &tile)) return;
    const int steps = steps_of(tile);
    RingPlace<kSteps> place;
    Rounded rounded = {};
    Part part = kNoPart;
    for (bool more = true; more;) {
      const bool idle = !has_rows(tile, consumer);
      Sums sums;
      int piece = 0, due = 0, previous = 0;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        full_[place.slot].wait(place.parity);
        if (!idle) multiply_step(sums, place.slot, consumer, step > 0);
        if (step > 0) {
          wait_products<1>();
          release(previous);
        }
#pragma unroll 1
        for (due += kPieces; due >= steps; due -= steps, ++piece)
          run_piece(piece, rounded, part, places, barriers);
        previous = place.slot;
        place.advance();
      }
      part = part_of(tile, consumer);
      more = tiles.next(problem_, &tile);
      wait_products<0>(sums);
      release(previous);
      round(sums, rounded);
    }
    run_pieces(rounded, part, places, barriers);
  }

  /// The units of the tail: their sums go out as they are.
  __device__ void consume_units(int consumer, RingPlace<kSteps>& place) {
    for_each_unit([&](int unit, const TilePlace& tile) {
      Sums sums = {};
      const bool idle = !has_rows(tile, consumer);
      const int steps = steps_of(tile);
      int previous = 0;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        full_[place.slot].wait(place.parity);
        if (!idle) multiply_step(sums, place.slot, consumer, true);
        if (step > 0) {
          wait_products<1>();
          release(previous);
        }
        previous = place.slot;
        place.advance();
      }
      wait_products<0>(sums);
      release(previous);
      const int block = unit * Tile::kBlocks + static_cast<int>(cluster_rank());
      float4* to = epilogue_.parts + (block * Tile::kConsumers + consumer) * (Tile::kN / 8 * kWarpgroup) +
                   threadIdx.x % kWarpgroup;
#pragma unroll
      for (int i = 0; i < Tile::kN / 8; ++i)
        to[i * kWarpgroup] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
    });
  }

  /// Turns have numbers below 0.
  __device__ void run_piece(int piece, Rounded& rounded, const Part& part,
                            const typename Epilogue::Places& places,
                            typename Epilogue::Barriers& barriers) const {
    if constexpr (RotatesParts<Epilogue>)
      if (piece < 0)
        return with_constant<0, kTurns>(piece + kTurns, [&](int i) { epilogue_.rotate(i, rounded, part); });
    with_constant<0, kPieces>(piece,
                              [&](int i) { epilogue_.run(i, piece_of(rounded, i), part, places, barriers); });
  }

  /// All pieces of the last tile, beside which nothing is multiplied any more.
  __device__ __forceinline__ void run_pieces(Rounded& rounded, const Part& part,
                                             const typename Epilogue::Places& places,
                                             typename Epilogue::Barriers& barriers) const {
    if constexpr (RotatesParts<Epilogue>) {
#pragma unroll
      for (int i = 0; i < kTurns; ++i) epilogue_.rotate(i, rounded, part);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) epilogue_.run(i, piece_of(rounded, i), part, places, barriers);
  }

  /// kDepth. As consume_rows(), but each expert has its own depth, and may have none: what the epilogue has
  /// not done when the last step has been started it does before the sums behind are rounded, and the last
  /// tile's with no steps beside it. An epilogue that does not round gets the sums as they are.
  __device__ void consume_depths(int consumer) {
    unsigned char* panels = warp_panels(consumer);
    RingPlace<kSteps> place;
    Tiles<kGrouped> tiles;
    TilePlace tile;
    Rounded rounded = {};
    Part part = kNoPart;
    for (bool more = true; more;) {
      more = tiles.next(problem_, &tile);
      const int steps = more ? steps_of(tile) : 0;
      Sums sums = {};
      int piece = part.empty() ? kPieces + 1 : 0, previous = 0;
#pragma unroll 1
      for (int step = 0; step < steps || piece <= kPieces; ++step) {
        if (step < steps) {
          full_[place.slot].wait(place.parity);
          const int left = tile.depth - step * Tile::kK;
          if (left < Tile::kK) clear_runs(step_at(place.slot), left);
          multiply_step(sums, place.slot, consumer, true);
          if (step > 0) {
            wait_products<1>();
            release(previous);
          }
          previous = place.slot;
          place.advance();
        }
        if constexpr (Epilogue::kRounds) {
          if (piece < kPieces)
            with_constant<0, kPieces>(piece,
                                      [&](int i) { epilogue_.run(i, piece_of(rounded, i), part, panels); });
          else if (piece == kPieces)
            epilogue_.finish(rounded, part);
          ++piece;
        }
      }
      wait_products<0>(sums);
      if (steps > 0) release(previous);
      const Part done = more && !epilogue_.skips(tile.depth) ? part_of(tile, consumer) : kNoPart;
      if constexpr (Epilogue::kRounds) {
        part = done;
        round(sums, rounded);
      } else if (!done.empty()) {
        epilogue_.store(sums, done, panels);
      }
    }
  }

  /// Starts to multiply a step; adds to the sums, or overwrites them.
  __device__ void multiply_step(Sums& sums, int slot, int consumer, bool add) {
    const uint32_t at = shared_place(step_at(slot));
    const uint32_t a = at + static_cast<uint32_t>(consumer) * kBoxBytes, b = at + Tile::kBytesA;
    begin_products();
#pragma unroll
    for (uint32_t k = 0; k < Tile::kK / 16; ++k)
      multiply<StepA::kRunsAlongRows, StepB::kRunsAlongRows>(
          sums, factor_descriptor(a + k * kDepthBytes<StepA::kRunsAlongRows>),
          factor_descriptor(b + k * kDepthBytes<StepB::kRunsAlongRows>), add || k > 0);
    commit_products();
  }

  /// The warp has read a step; both blocks write to it.
  __device__ void release(int index) {
    if (threadIdx.x % 32 < Tile::kBlocks) empty_[index].arrive_at(threadIdx.x % 32);
  }

  /// All consumers: zeroes the runs of a step from `valid` on, which are rows of another expert or padding.
  __device__ void clear_runs(unsigned char* step, int valid) {
    static_assert(kGrouped == Grouped::kRows || (StepA::kRunsAlongRows && StepB::kRunsAlongRows));
    const int threads = Tile::kConsumers * kWarpgroup, thread = static_cast<int>(threadIdx.x) - kWarpgroup;
    for (int box = 0; box < Tile::kStepBytes; box += kBoxBytes)
      for (int at = valid * kRunBytes + thread * 16; at < kBoxBytes; at += threads * 16)
        *reinterpret_cast<uint4*>(step + box + at) = make_uint4(0, 0, 0, 0);
    fence_shared_for_async();
    sync_threads(1, threads);
  }

  const GroupedProblem& problem_;
  const Epilogue& epilogue_;
  unsigned char *steps_, *panels_;
  Barrier *full_, *empty_;
  Tail* tail_;                                      // SplitsTail
  typename Epilogue::Barriers* epilogue_barriers_;  // of each consumer
};

/// c = a b for all experts, b being the first expert's weight; the epilogue says what becomes of c.
template <Along kAlongA, Along kAlongB, Grouped kGrouped, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    multiply_groups(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                    const __grid_constant__ Epilogue epilogue, const GroupedProblem problem) {
#ifdef MOEC_HOPPER_CODE
  extern __shared__ __align__(kAtomBytes) unsigned char memory[];
  GroupedBlock<kAlongA, kAlongB, kGrouped, Epilogue> block(memory, problem, epilogue);
  begin_kernel();
  block.begin();
  if (threadIdx.x < kWarpgroup) {
    shrink_registers<24>();
    if (threadIdx.x == 0) block.produce(a, b);
    if constexpr (Epilogue::kMoves)
      if (const int mover = warp_id() - 1; mover >= 0 && mover < Tile::kConsumers) block.move(mover);
    __syncwarp();
  } else {
    grow_registers<240>();
    block.consume(warp_id() / 4 - 1);
    __syncwarp();
  }
  sync_cluster();  // a neighbour may still write here
#endif
}

}  // namespace moec::cuda::hopper
