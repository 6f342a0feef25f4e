// Products over rows that are grouped by expert, on Hopper: c(m,n) = sum_k a(m,k) b(n,k), tile by tile.
//
// A block is one warpgroup that loads, a step of 64 depths of both factors at a time, and two that multiply,
// each its half of the tile's rows. Steps go round a ring in shared memory: `full` barriers say that a step
// has come, `empty` ones that all who read it have done so. Two blocks form a cluster: their tiles lie below
// each other and share b, of which each loads half into both. Blocks are as many as the device has room for
// and take turns at the tiles, of which only the device knows how many there are.
#pragma once

#include "kernels/cuda/hopper/wgmma.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda::hopper {

/// What the rows of an expert, offsets[e] to offsets[e+1], are to its product.
enum class Grouped {
  kRows,   // the rows of a and c; b and c's columns are the expert's weight
  kDepth,  // the depth, along which both factors have rows; c is the expert's weight gradient
};

/// The tile of a block, and how it uses shared memory.
struct Tile {
  static constexpr int kM = 128, kN = 256, kK = 64;
  static constexpr int kBlocks = 2;     // of a cluster
  static constexpr int kConsumers = 2;  // warpgroups that multiply
  static constexpr int kConsumerWarps = 4 * kConsumers;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kSteps = 4;
  static constexpr int kBytesA = kM * kRunBytes, kBytesB = kN * kRunBytes, kStepBytes = kBytesA + kBytesB;
  static constexpr int kStagingBytes = 4096;  // per warp, for results on their way out
  static constexpr int kBarriers = 2 * kSteps;
  static constexpr int kSharedBytes = kAtomBytes + kSteps * kStepBytes + kConsumerWarps * kStagingBytes +
                                      kBarriers * static_cast<int>(sizeof(Barrier));
};

/// The sums of a warp's 16 x kN part of a tile; see multiply() for who has what.
using Sums = float[Tile::kN / 2];

struct GroupedProblem {
  const int32_t* offsets;  // [experts + 1]
  int experts;
  int rows;   // of c; kRows: unused
  int cols;   // of c
  int depth;  // kDepth: unused
};

/// The tiles of the block's cluster, in the order of experts, bands of rows, columns, rows: what runs
/// together shares rows and columns.
template <Grouped kGrouped>
class Tiles {
 public:
  __device__ Tiles(const GroupedProblem& problem)
      : problem_(problem),
        tile_(static_cast<int>(blockIdx.x) / Tile::kBlocks),
        col_tiles_(ceil_div(problem.cols, Tile::kN)) {
    open();
  }

  /// Finds the block's next tile; false if there is none.
  __device__ bool next() {
    while (expert_ < problem_.experts && tile_ - first_ >= row_tiles_ * col_tiles_) {
      first_ += row_tiles_ * col_tiles_;
      ++expert_;
      open();
    }
    if (expert_ == problem_.experts) return false;
    const int place = tile_ - first_, per_band = kBandRows * col_tiles_;
    const int band = place / per_band, in_band = place % per_band;
    const int band_rows = min(kBandRows, row_tiles_ - band * kBandRows);
    row_ =
        (band * kBandRows + in_band % band_rows) * kClusterRows + static_cast<int>(cluster_rank()) * Tile::kM;
    col_ = in_band / band_rows * Tile::kN;
    tile_ += static_cast<int>(gridDim.x) / Tile::kBlocks;
    return true;
  }

  __device__ int expert() const { return expert_; }
  /// First row and end of the rows of c; kRows: of all rows.
  __device__ int row() const { return kGrouped == Grouped::kRows ? begin_ + row_ : row_; }
  __device__ int row_end() const { return kGrouped == Grouped::kRows ? end_ : problem_.rows; }
  __device__ int col() const { return col_; }
  /// First depth, and steps; the last may be partial.
  __device__ int depth_begin() const { return kGrouped == Grouped::kRows ? 0 : begin_; }
  __device__ int depth() const { return kGrouped == Grouped::kRows ? problem_.depth : end_ - begin_; }
  __device__ int steps() const { return ceil_div(depth(), Tile::kK); }

 private:
  static constexpr int kClusterRows = Tile::kM * Tile::kBlocks;
  /// Row tiles of clusters that are swept together over all columns.
  static constexpr int kBandRows = 8;

  __device__ static int ceil_div(int a, int b) { return (a + b - 1) / b; }

  __device__ void open() {
    if (expert_ == problem_.experts) return;
    begin_ = problem_.offsets[expert_];
    end_ = problem_.offsets[expert_ + 1];
    row_tiles_ = ceil_div(kGrouped == Grouped::kRows ? end_ - begin_ : problem_.rows, kClusterRows);
  }

  const GroupedProblem& problem_;
  int tile_, col_tiles_;
  int expert_ = 0, first_ = 0;  // first tile of the expert
  int begin_ = 0, end_ = 0, row_tiles_ = 0;
  int row_ = 0, col_ = 0;
};

/// A step of a factor of kRows rows in shared memory, loaded by kShares blocks.
template <Along kAlong, int kRows, int kShares>
struct FactorStep {
  static constexpr bool kRunsAlongRows = kAlong == Along::kRows;
  static constexpr int kShareRows = kRows / kShares;
  /// Rows of the tensor map's box; runs along rows: depths.
  static constexpr int kBoxRows = kRunsAlongRows ? 64 : kShareRows;
  static_assert(kShareRows % (kRunsAlongRows ? 64 : 8) == 0);

  /// Starts to load a share into all kShares blocks.
  __device__ static void load(const CUtensorMap& map, Barrier& barrier, unsigned char* to, int row, int depth,
                              int expert, int share) {
    const int first = share * kShareRows;
    const auto load = [&](int x, int y, unsigned char* box) {
      if constexpr (kShares > 1)
        load_box_to_all<kShares>(map, barrier, box, x, y, expert);
      else
        load_box(map, barrier, box, x, y, expert);
    };
    if constexpr (kRunsAlongRows) {
#pragma unroll
      for (int i = first; i < first + kShareRows; i += 64) load(row + i, depth, to + i * kRunBytes);
    } else {
      load(depth, row + first, to + first * kRunBytes);
    }
  }
};

template <Along kAlongA, Along kAlongB, Grouped kGrouped>
class GroupedBlock {
 public:
  using StepA = FactorStep<kAlongA, Tile::kM, 1>;
  using StepB = FactorStep<kAlongB, Tile::kN, Tile::kBlocks>;

  /// `shared` is the dynamic shared memory of the block.
  __device__ explicit GroupedBlock(unsigned char* shared) {
    const uint32_t misaligned = shared_address(shared) % kAtomBytes;
    steps_ = shared + (misaligned ? kAtomBytes - misaligned : 0);
    staging_ = steps_ + Tile::kSteps * Tile::kStepBytes;
    full_ = reinterpret_cast<Barrier*>(staging_ + Tile::kConsumerWarps * Tile::kStagingBytes);
    empty_ = full_ + Tile::kSteps;
    if (threadIdx.x == 0) {
      for (int i = 0; i < Tile::kSteps; ++i) {
        full_[i].init(1);
        empty_[i].init(Tile::kConsumerWarps * Tile::kBlocks);
      }
      fence_barrier_init();
    }
    __syncwarp();
    sync_cluster();
  }

  /// One thread of the block: loads the steps of all tiles.
  __device__ void produce(const CUtensorMap& a, const CUtensorMap& b, const GroupedProblem& problem) {
    RingPlace<Tile::kSteps> place;
    Tiles<kGrouped> tiles(problem);
    const int rank = static_cast<int>(cluster_rank());
    while (tiles.next()) {
      const int steps = tiles.steps(), expert_b = kGrouped == Grouped::kRows ? tiles.expert() : 0;
      for (int step = 0; step < steps; ++step, place.advance()) {
        empty_[place.slot].wait(place.parity ^ 1);
        Barrier& full = full_[place.slot];
        full.arrive_expecting(Tile::kStepBytes);
        unsigned char* to = step_at(place.slot);
        const int depth = tiles.depth_begin() + step * Tile::kK;
        StepA::load(a, full, to, tiles.row(), depth, 0, 0);
        StepB::load(b, full, to + Tile::kBytesA, tiles.col(), depth, expert_b, rank);
      }
    }
  }

  /// A warpgroup, number `consumer`: multiplies and hands its sums to the epilogue.
  template <class Epilogue>
  __device__ void consume(const GroupedProblem& problem, const Epilogue& epilogue, int consumer) {
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
    unsigned char* staging = staging_ + (consumer * 4 + warp) * Tile::kStagingBytes;
    RingPlace<Tile::kSteps> place;
    Tiles<kGrouped> tiles(problem);
    while (tiles.next()) {
      Sums sums;
      multiply_tile(tiles, consumer, place, sums);
      const int row = tiles.row() + consumer * 64 + warp * 16;
      if (row < tiles.row_end() && !epilogue.skips(tiles.depth()))
        epilogue.store(sums, tiles.expert(), row, tiles.row_end(), tiles.col(), problem.cols, staging);
    }
    if (threadIdx.x % 32 == 0) wait_stores_read<0>();
  }

 private:
  __device__ unsigned char* step_at(int index) const { return steps_ + index * Tile::kStepBytes; }

  __device__ void multiply_tile(const Tiles<kGrouped>& tiles, int consumer, RingPlace<Tile::kSteps>& place,
                                Sums& sums) {
    // An expert may have no depth at all; it always has columns.
    constexpr bool kZeroFirst = kGrouped == Grouped::kDepth;
    if constexpr (kZeroFirst) {
#pragma unroll
      for (float& sum : sums) sum = 0;
    }
    const int steps = tiles.steps();
    int previous = 0;
    for (int step = 0; step < steps; ++step, place.advance()) {
      full_[place.slot].wait(place.parity);
      if constexpr (kGrouped == Grouped::kDepth) {
        const int left = tiles.depth() - step * Tile::kK;
        if (left < Tile::kK) clear_runs(step_at(place.slot), left);
      }
      const uint32_t at = shared_address(step_at(place.slot));
      const uint64_t a = factor_descriptor(at + static_cast<uint32_t>(consumer) * kBoxBytes);
      const uint64_t b = factor_descriptor(at + Tile::kBytesA);
      begin_products();
#pragma unroll
      for (int k = 0; k < Tile::kK / 16; ++k)
        multiply<StepA::kRunsAlongRows, StepB::kRunsAlongRows>(
            sums, a + k * kDepthStep<StepA::kRunsAlongRows>, b + k * kDepthStep<StepB::kRunsAlongRows>,
            kZeroFirst || step > 0 || k > 0);
      commit_products();
      if (step > 0) {
        wait_products<1>();
        release(previous);
      }
      previous = place.slot;
    }
    wait_products<0>();
    if (steps > 0) release(previous);
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

  unsigned char *steps_, *staging_;
  Barrier *full_, *empty_;
};

/// c = a b for all experts, b being the first expert's weight; the epilogue says what becomes of c.
template <Along kAlongA, Along kAlongB, Grouped kGrouped, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    multiply_groups(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                    const __grid_constant__ Epilogue epilogue, const GroupedProblem problem) {
#ifdef MOEC_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  GroupedBlock<kAlongA, kAlongB, kGrouped> block(memory);
  begin_kernel();
  if (threadIdx.x < kWarpgroup) {
    shrink_registers<40>();
    if (threadIdx.x == 0) block.produce(a, b, problem);
    __syncwarp();
  } else {
    grow_registers<232>();
    block.consume(problem, epilogue, static_cast<int>(threadIdx.x) / kWarpgroup - 1);
    __syncwarp();
  }
  sync_cluster();  // a neighbour may still write here
#endif
}

}  // namespace moec::cuda::hopper
