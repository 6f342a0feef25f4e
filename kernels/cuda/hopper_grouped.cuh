// Products over rows that are grouped by expert, on Hopper: c(m,n) = sum_k a(m,k) b(n,k), tile by tile.
//
// A block is one warpgroup that loads, a step of 64 depths of both factors at a time, and two that multiply,
// each its half of the tile's rows. Steps go round a ring in shared memory: `full` barriers say that a step
// has come, `empty` ones that all who read it have done so. Two blocks may form a cluster, whose tiles are
// neighbours and share one factor: each loads half of it into both. Blocks are as many as fit the device and
// take turns at the tiles, of which only the device knows how many there are.
#pragma once

#include "kernels/cuda/hopper_wgmma.cuh"
#include "kernels/cuda/tile.cuh"

namespace moec::cuda::hopper {

/// What the rows of an expert, offsets[e] to offsets[e+1], are to its product.
enum class Grouped {
  kRows,   // the rows of a and c; b and c's columns are the expert's weight
  kDepth,  // the depth, along which both factors have rows; c is the expert's weight gradient
};

/// A tile of kM x kN per block; clusters of kPairM x kPairN blocks, one of them 2 at most.
template <int kTileM, int kTileN, int kPairRows, int kPairCols>
struct TileShape {
  static constexpr int kM = kTileM, kN = kTileN, kK = 64;
  static constexpr int kPairM = kPairRows, kPairN = kPairCols, kBlocks = kPairM * kPairN;
  static constexpr int kConsumers = 2, kConsumerWarps = 4 * kConsumers;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kSubtiles = kM / (64 * kConsumers);  // of 64 rows, per warpgroup
  static constexpr int kBytesA = kM * kRunBytes, kBytesB = kN * kRunBytes, kStepBytes = kBytesA + kBytesB;
  static constexpr int kStagingBytes = 4096;  // per warp, of results on their way out
  static constexpr int kMostSharedBytes = 227 * 1024;
  static constexpr int kSteps =
      (kMostSharedBytes - kAtomBytes - 256 - kConsumerWarps * kStagingBytes) / kStepBytes;
  static constexpr int kSharedBytes =
      kAtomBytes + kSteps * kStepBytes + kConsumerWarps * kStagingBytes + 2 * kSteps * sizeof(Barrier);
  static_assert(kBlocks <= 2 && kSubtiles >= 1 && kM % (64 * kConsumers) == 0);
};

/// The sums of a warp's 16 x kN part of a tile; see multiply() for who has what.
template <class Shape>
using Sums = float[Shape::kN / 2];

struct GroupedProblem {
  const int32_t* offsets;  // [experts + 1]
  int experts;
  int rows;   // of c; kRows: unused
  int cols;   // of c
  int depth;  // kDepth: unused
  int band;   // clusters' tiles whose rows are swept together over all columns
};

/// The tiles of the block's cluster, in the order of experts, bands of rows, columns, rows: what runs
/// together shares rows and columns.
template <class Shape, Grouped kGrouped>
class Tiles {
 public:
  __device__ Tiles(const GroupedProblem& problem)
      : problem_(problem),
        rank_(static_cast<int>(Shape::kBlocks > 1 ? cluster_rank() : 0)),
        tile_(static_cast<int>(blockIdx.x) / Shape::kBlocks),
        col_tiles_(ceil_div(problem.cols, Shape::kN * Shape::kPairN)) {
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
    const int place = tile_ - first_, per_band = problem_.band * col_tiles_;
    const int band = place / per_band, in_band = place % per_band;
    const int band_rows = min(problem_.band, row_tiles_ - band * problem_.band);
    row_ = (band * problem_.band + in_band % band_rows) * (Shape::kM * Shape::kPairM) +
           (Shape::kPairM > 1 ? rank_ * Shape::kM : 0);
    col_ = in_band / band_rows * (Shape::kN * Shape::kPairN) + (Shape::kPairN > 1 ? rank_ * Shape::kN : 0);
    tile_ += static_cast<int>(gridDim.x) / Shape::kBlocks;
    return true;
  }

  __device__ int rank() const { return rank_; }  // of the block in its cluster
  __device__ int expert() const { return expert_; }
  /// First row and end of the rows of c; kRows: of all rows.
  __device__ int row() const { return kGrouped == Grouped::kRows ? begin_ + row_ : row_; }
  __device__ int row_end() const { return kGrouped == Grouped::kRows ? end_ : problem_.rows; }
  __device__ int col() const { return col_; }
  /// First depth, and steps; the last may be partial.
  __device__ int depth_begin() const { return kGrouped == Grouped::kRows ? 0 : begin_; }
  __device__ int depth() const { return kGrouped == Grouped::kRows ? problem_.depth : end_ - begin_; }
  __device__ int steps() const { return ceil_div(depth(), Shape::kK); }

 private:
  __device__ static int ceil_div(int a, int b) { return (a + b - 1) / b; }

  __device__ void open() {
    if (expert_ == problem_.experts) return;
    begin_ = problem_.offsets[expert_];
    end_ = problem_.offsets[expert_ + 1];
    row_tiles_ =
        ceil_div(kGrouped == Grouped::kRows ? end_ - begin_ : problem_.rows, Shape::kM * Shape::kPairM);
  }

  const GroupedProblem& problem_;
  int rank_, tile_, col_tiles_;
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

  /// Starts to load the share of block `rank` into all kShares blocks.
  __device__ static void load(const CUtensorMap& map, Barrier& barrier, unsigned char* to, int row, int depth,
                              int expert, int rank) {
    const int first = kShares > 1 ? rank * kShareRows : 0;
    const auto load = [&](int x, int y, unsigned char* box) {
      if constexpr (kShares > 1)
        load_box_to((1 << kShares) - 1, map, barrier, box, x, y, expert);
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

  /// Descriptor of 64 rows (a) or all rows (b) from row `row` of the step at `step`.
  __device__ static uint64_t descriptor(uint32_t step, int row) {
    return factor_descriptor(step + static_cast<uint32_t>(row) * kRunBytes);
  }
};

/// Position in the ring of steps.
template <int kSteps>
struct RingPlace {
  int index = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++index == kSteps) {
      index = 0;
      parity ^= 1;
    }
  }
};

template <class Shape, Along kAlongA, Along kAlongB, Grouped kGrouped>
class GroupedBlock {
 public:
  using StepA = FactorStep<kAlongA, Shape::kM, Shape::kPairN>;
  using StepB = FactorStep<kAlongB, Shape::kN, Shape::kPairM>;

  /// `shared` is the dynamic shared memory of the block.
  __device__ explicit GroupedBlock(unsigned char* shared) {
    const uint32_t misaligned = shared_address(shared) % kAtomBytes;
    steps_ = shared + (misaligned ? kAtomBytes - misaligned : 0);
    staging_ = steps_ + Shape::kSteps * Shape::kStepBytes;
    full_ = reinterpret_cast<Barrier*>(staging_ + Shape::kConsumerWarps * Shape::kStagingBytes);
    empty_ = full_ + Shape::kSteps;
    if (threadIdx.x == 0) {
      for (int i = 0; i < Shape::kSteps; ++i) {
        full_[i].init(1);
        empty_[i].init(Shape::kConsumerWarps * Shape::kBlocks);
      }
      fence_barrier_init();
    }
    Shape::kBlocks > 1 ? sync_cluster() : __syncthreads();
  }

  /// One thread of the block: loads the steps of all tiles.
  template <class Prefetch>
  __device__ void produce(const CUtensorMap& a, const CUtensorMap& b, const GroupedProblem& problem,
                          const Prefetch& epilogue) {
    RingPlace<Shape::kSteps> place;
    Tiles<Shape, kGrouped> tiles(problem);
    while (tiles.next()) {
      const int expert_a = 0, expert_b = kGrouped == Grouped::kRows ? tiles.expert() : 0;
      const int steps = tiles.steps();
      for (int step = 0; step < steps; ++step, place.advance()) {
        empty_[place.index].wait(place.parity ^ 1);
        Barrier& full = full_[place.index];
        full.arrive_expecting(Shape::kStepBytes);
        unsigned char* to = step_at(place.index);
        const int depth = tiles.depth_begin() + step * Shape::kK;
        StepA::load(a, full, to, tiles.row(), depth, expert_a, tiles.rank());
        StepB::load(b, full, to + Shape::kBytesA, tiles.col(), depth, expert_b, tiles.rank());
      }
    }
  }

  /// A warpgroup, number `consumer`: multiplies and hands its sums to the epilogue.
  template <class Epilogue>
  __device__ void consume(const GroupedProblem& problem, const Epilogue& epilogue, int consumer) {
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
    unsigned char* staging = staging_ + (consumer * 4 + warp) * Shape::kStagingBytes;
    RingPlace<Shape::kSteps> place;
    Tiles<Shape, kGrouped> tiles(problem);
    while (tiles.next()) {
      Sums<Shape> sums[Shape::kSubtiles];
      multiply_tile(tiles, consumer, place, sums);
      if (epilogue.skips(tiles.depth())) continue;
#pragma unroll
      for (int i = 0; i < Shape::kSubtiles; ++i) {
        const int row = tiles.row() + (consumer * Shape::kSubtiles + i) * 64 + warp * 16;
        if (row < tiles.row_end())
          epilogue.store(sums[i], tiles.expert(), row, tiles.row_end(), tiles.col(), problem.cols, staging);
      }
    }
    if (threadIdx.x % 32 == 0) wait_stores_read<0>();
  }

 private:
  __device__ unsigned char* step_at(int index) const { return steps_ + index * Shape::kStepBytes; }

  __device__ void multiply_tile(const Tiles<Shape, kGrouped>& tiles, int consumer,
                                RingPlace<Shape::kSteps>& place, Sums<Shape> (&sums)[Shape::kSubtiles]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto release = [&](int index) {
      if (lane < Shape::kBlocks) empty_[index].arrive_at(static_cast<uint32_t>(lane));
    };
    const int steps = tiles.steps();
    constexpr bool kZeroFirst = kGrouped == Grouped::kDepth || Shape::kSubtiles > 1;
    if constexpr (kZeroFirst) {
#pragma unroll
      for (auto& part : sums)
#pragma unroll
        for (float& sum : part) sum = 0;
    }
    int previous = 0;
    for (int step = 0; step < steps; ++step, place.advance()) {
      full_[place.index].wait(place.parity);
      if constexpr (kGrouped == Grouped::kDepth) {
        const int left = tiles.depth() - step * Shape::kK;
        if (left < Shape::kK) clear_runs(step_at(place.index), left);
      }
      const uint32_t a = shared_address(step_at(place.index)), b = a + Shape::kBytesA;
      begin_products();
#pragma unroll
      for (int k = 0; k < Shape::kK / 16; ++k) {
        const uint64_t factor_b = StepB::descriptor(b, 0) + k * kDepthStep<StepB::kRunsAlongRows>;
#pragma unroll
        for (int i = 0; i < Shape::kSubtiles; ++i)
          multiply<StepA::kRunsAlongRows, StepB::kRunsAlongRows>(
              sums[i],
              StepA::descriptor(a, (consumer * Shape::kSubtiles + i) * 64) +
                  k * kDepthStep<StepA::kRunsAlongRows>,
              factor_b, kZeroFirst || step > 0 || k > 0);
      }
      commit_products();
      if (step > 0) {
        wait_products<1>();
        release(previous);
      }
      previous = place.index;
    }
    wait_products<0>();
    if (steps > 0) release(previous);
  }

  /// All consumers: zeroes the runs of a step from `valid` on, which are rows of another expert or padding.
  __device__ void clear_runs(unsigned char* step, int valid) {
    static_assert(kGrouped == Grouped::kRows || (StepA::kRunsAlongRows && StepB::kRunsAlongRows));
    const int threads = Shape::kConsumers * kWarpgroup, thread = static_cast<int>(threadIdx.x) - kWarpgroup;
    for (int box = 0; box < Shape::kStepBytes; box += kBoxBytes)
      for (int at = valid * kRunBytes + thread * 16; at < kBoxBytes; at += threads * 16)
        *reinterpret_cast<uint4*>(step + box + at) = make_uint4(0, 0, 0, 0);
    fence_shared_for_async();
    sync_threads(1, threads);
  }

  unsigned char *steps_, *staging_;
  Barrier *full_, *empty_;
};

/// c = a b for all experts, b being the first expert's weight; the epilogue says what becomes of c.
template <class Shape, Along kAlongA, Along kAlongB, Grouped kGrouped, class Epilogue>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    multiply_groups(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                    const __grid_constant__ Epilogue epilogue, const GroupedProblem problem) {
#ifdef MOEC_HOPPER_CODE
  extern __shared__ unsigned char memory[];
  GroupedBlock<Shape, kAlongA, kAlongB, kGrouped> block(memory);
  begin_kernel();
  if (threadIdx.x < kWarpgroup) {
    shrink_registers<40>();
    if (threadIdx.x == 0) block.produce(a, b, problem, epilogue);
    __syncwarp();
  } else {
    grow_registers<232>();
    block.consume(problem, epilogue, static_cast<int>(threadIdx.x) / kWarpgroup - 1);
    __syncwarp();
  }
  if (Shape::kBlocks > 1) sync_cluster();  // a neighbour may still write here
#endif
}

}  // namespace moec::cuda::hopper
