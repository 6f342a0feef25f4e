// What the attention kernels for compute capability 9.0a share. A tile is a run of positions of some heads of
// one batch; its rows, (position, head) with the head running fastest, lie in shared memory in halves of 64
// columns (see wgmma.cuh). One warpgroup starts the copies, the others compute.
#pragma once

#include <numeric>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/products.cuh"

namespace moec::cuda::hopper {

/// Registers of a thread, by the number of warpgroups that compute: together as many as the block started
/// with.
template <int kConsumers>
struct Registers {
  static_assert(kConsumers == 2 || kConsumers == 3);
  static constexpr int kProducer = kConsumers == 3 ? 32 : 24, kConsumer = kConsumers == 3 ? 160 : 240;
};

/// The dynamic shared memory from the first boundary of 1,024 bytes on.
__device__ __forceinline__ void* aligned_shared() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory + (1024 - shared_address(memory) % 1024) % 1024;
}

/// rows[B,S,heads d] as a tensor (d, heads, S, B), copied in boxes of 64 columns.
cudaError_t map_heads(CUtensorMap& map, const AttentionShape& shape, const void* rows, int heads,
                      int box_heads, int box_positions);

/// Tiles of some positions of `bundle` heads each, in the order of execution: those of bundles whose keys and
/// values fit in the L2 cache together, and of these the tiles with the most to visit first. Blocks take them
/// in turns, back and forth, so that each has about the same work.
struct TileOrder {
  int bundle, bundles;  // heads in a bundle, bundles of all batches
  int tiles;            // of a bundle
  int section;          // bundles that are done together

  __host__ __device__ int count() const { return tiles * bundles; }
  /// Number of the tile that this block does in a round; count() or more where there is none.
  __device__ int turn(int round) const {
    const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  }
  /// Calls visit(bundle, rank) for the tile of this number; rank 0 has the most to visit.
  template <class Visit>
  __device__ void visit_tile(int index, Visit&& visit) const {
    const int begin = index / (section * tiles) * section, within = index - begin * tiles;
    const int bundles_here = min(section, bundles - begin);
    visit(begin + within % bundles_here, within / bundles_here);
  }
  /// The same for all tiles that this block does.
  template <class Visit>
  __device__ void for_each_turn(Visit&& visit) const {
    for (int round = 0; round * static_cast<int>(gridDim.x) < count(); ++round) {
      const int index = turn(round);
      if (index >= count()) break;
      visit_tile(index, visit);
    }
  }
};

/// For tiles of `positions` positions of bundles of `heads`, i.e. all query heads or all key/value heads.
TileOrder tile_order(const AttentionShape& shape, int heads, int bundle, int positions);

/// Heads in a tile of `rows` rows of queries: of one group, so that they share keys and values.
inline int tile_heads(const AttentionShape& shape, int rows) { return std::gcd(shape.group(), rows); }

/// A tile of queries and what they see.
struct QueryWork {
  int heads, batch, first_head, kv_head, first;
  int blocks;  // of `keys` keys that some query sees

  __device__ QueryWork(const AttentionShape& shape, const TileOrder& order, int bundle, int rank, int rows,
                       int keys)
      : heads(order.bundle) {
    const int bundles = shape.heads / heads, positions = rows / heads;
    batch = bundle / bundles;
    first_head = bundle % bundles * heads;
    kv_head = first_head / shape.group();
    first = (order.tiles - 1 - rank) * positions;
    blocks = (min(first + positions, shape.seq) - 1) / keys + 1;
  }

  __device__ int position(int row) const { return first + row / heads; }
  __device__ int head(int row) const { return first_head + row % heads; }
};

/// Barriers of a ring of buffers between the producer and consumers. The threads of a warpgroup that release
/// a buffer are one of each warp where only products read it, and all where they read it themselves: an
/// arrival orders no reads of other threads.
template <int kSlots, int kReleasers = kWarpgroup / 32>
struct Ring {
  Barrier full[kSlots], empty[kSlots];

  __device__ void init(int consumers) {
    for (int i = 0; i < kSlots; ++i) {
      full[i].init(1);
      empty[i].init(consumers * kReleasers);
    }
  }
  __device__ void await_empty(const RingPlace<kSlots>& place) { empty[place.slot].wait(place.parity ^ 1); }
  /// The producer's: waits for an empty buffer, and announces `bytes` of copies.
  __device__ Barrier& fill(const RingPlace<kSlots>& place, int bytes) {
    await_empty(place);
    full[place.slot].arrive_expecting(bytes);
    return full[place.slot];
  }
  __device__ void await(const RingPlace<kSlots>& place) { full[place.slot].wait(place.parity); }
  /// By all threads of a consumer.
  __device__ void release(const RingPlace<kSlots>& place) {
    if (threadIdx.x % (kWarpgroup / kReleasers) == 0) empty[place.slot].arrive();
  }
};

/// A tile of kRows rows.
template <int kRows, int kDim>
struct RowTile {
  static constexpr int kHalves = kDim / 64;
  static constexpr uint32_t kHalfBytes = kRows * 128;

  alignas(1024) bf16 data[kHalves][kRows][64];

  __device__ void load(const CUtensorMap& map, int head, int position, int batch, Barrier& full) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
      load_box(map, full, data[half], half * 64, head, position, batch);
  }
};

/// Descriptor of rows of a tile from `start` on. Where runs go along rows of the factor, i.e. positions are
/// its depth, the halves of a tile are `half_bytes` apart.
__device__ inline uint64_t tile_descriptor(const void* start, uint32_t half_bytes = 0) {
  constexpr uint64_t kSwizzle128 = 1;
  return kSwizzle128 << 62 | uint64_t{kAtomBytes / 16} << 32 | uint64_t{half_bytes / 16} << 16 |
         (shared_address(start) & 0x3ffff) >> 4;
}

/// What depths from k on add to the descriptor of a tile whose runs go along depth.
template <class AnyTile>
__device__ constexpr uint64_t depth_offset(int k) {
  return (static_cast<uint64_t>(k / 64) * AnyTile::kHalfBytes + k % 64 * 2) / 16;
}

/// sums = the products of the 64 rows of a from `row` on with the rows of b.
template <int kRowsA, int kRowsB, int kDim>
__device__ __forceinline__ void multiply_rows(const RowTile<kRowsA, kDim>& a, int row,
                                              const RowTile<kRowsB, kDim>& b, float (&sums)[kRowsB / 2]) {
  const uint64_t left = tile_descriptor(&a.data[0][row][0]), right = tile_descriptor(&b.data[0][0][0]);
#pragma unroll
  for (int k = 0; k < kDim; k += 16)
    multiply<false, false>(sums, left + depth_offset<RowTile<kRowsA, kDim>>(k),
                           right + depth_offset<RowTile<kRowsB, kDim>>(k), k > 0);
}

/// 64 rows of a tile as the first factor of products, in registers if kHeld. From shared memory two factors
/// of products as small as 64 x 64 keep it as busy as the tensor cores.
template <int kRows, int kDim, bool kHeld>
class RowFactor {
 public:
  /// The rows from `row` on.
  __device__ __forceinline__ RowFactor(const RowTile<kRows, kDim>& tile, int row) : tile_(tile), row_(row) {
    if constexpr (kHeld) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const int at = row + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + lane % 16;
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        const int run = 2 * k + lane / 16;
        load_matrices<false>(fragments_[k], &tile.data[run / 8][at][(run % 8 ^ at % 8) * 8]);
      }
    }
  }

  /// sums = the products with the rows of b.
  template <int kRowsB>
  __device__ __forceinline__ void multiply_rows(const RowTile<kRowsB, kDim>& b,
                                                float (&sums)[kRowsB / 2]) const {
    if constexpr (kHeld) {
      const uint64_t right = tile_descriptor(&b.data[0][0][0]);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k)
        multiply<false>(sums, fragments_[k], right + depth_offset<RowTile<kRowsB, kDim>>(16 * k), k > 0);
    } else {
      hopper::multiply_rows(tile_, row_, b, sums);
    }
  }

 private:
  const RowTile<kRows, kDim>& tile_;
  int row_;
  uint32_t fragments_[kHeld ? kDim / 16 : 1][4];
};

/// sums += weights[64,kRows] b, the weights as fragments.
template <int kRows, int kDim>
__device__ __forceinline__ void add_weighted(const uint32_t (&weights)[kRows / 4],
                                             const RowTile<kRows, kDim>& b, float (&sums)[kDim / 2]) {
  const uint64_t right = tile_descriptor(&b.data[0][0][0], RowTile<kRows, kDim>::kHalfBytes);
#pragma unroll
  for (int k = 0; k < kRows; k += 16)
    multiply<true>(sums, weights + k / 4, right + k / 16 * kDepthStep<true>, true);
}

/// Sums of a product as fragments of a factor of the next.
template <int kN>
__device__ __forceinline__ void to_fragments(const float (&sums)[kN], uint32_t (&fragments)[kN / 2]) {
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) fragments[i] = pack_bf16(sums[2 * i], sums[2 * i + 1]);
}

/// Number of this thread's warpgroup, known to the compiler as the same for all of its threads.
__device__ __forceinline__ int uniform_warpgroup() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
}
/// Rows of the calling thread within its warpgroup: this and this + 8.
__device__ __forceinline__ int fragment_row() {
  return static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
}
/// Its columns are 8 i + this + {0, 1}.
__device__ __forceinline__ int fragment_col() { return static_cast<int>(threadIdx.x) % 4 * 2; }

/// Writes the warpgroup's 64 rows of sums, by way of 64 rows of a tile that it has no more use for (from
/// `row` on), those of its two rows times `factor`. to(i) is where row i lies, or nullptr.
template <int kRows, int kDim, class Address>
__device__ __forceinline__ void store_rows(const float (&sums)[kDim / 2], const float (&factor)[2],
                                           RowTile<kRows, kDim>& tile, int row, int barrier, Address&& to) {
  const int own = fragment_row();
  __syncwarp();  // the lanes of a warp have read what these rows held for one another
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = row + own + half * 8;
      const int col = (i % 8 ^ at % 8) * 8 + fragment_col();
      *reinterpret_cast<uint32_t*>(&tile.data[i / 8][at][col]) =
          pack_bf16(sums[4 * i + 2 * half] * factor[half], sums[4 * i + 2 * half + 1] * factor[half]);
    }
  }
  sync_threads(barrier, kWarpgroup);
  constexpr int kRuns = kDim / 8;
#pragma unroll
  for (int i = 0; i < 64 * kRuns / kWarpgroup; ++i) {
    const int index = i * kWarpgroup + static_cast<int>(threadIdx.x) % kWarpgroup;
    const int at = index / kRuns, run = index % kRuns;
    bf16* out = to(at);
    if (out == nullptr) continue;
    const int col = (run % 8 ^ (row + at) % 8) * 8;
    reinterpret_cast<uint4*>(out)[run] = *reinterpret_cast<const uint4*>(&tile.data[run / 8][row + at][col]);
  }
}

/// -infinity for the keys that come after the queries at `position`.
template <int kN>
__device__ __forceinline__ void mask_later_keys(float (&scores)[kN], const int (&position)[2],
                                                int first_key) {
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const int key = first_key + i / 4 * 8 + fragment_col() + i % 2;
    if (key > position[i / 2 % 2]) scores[i] = -INFINITY;
  }
}

}  // namespace moec::cuda::hopper
