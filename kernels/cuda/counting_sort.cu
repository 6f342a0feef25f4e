#include "kernels/cuda/counting_sort.cuh"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

constexpr int kBlock = static_cast<int>(kExpertIndexBlock);
constexpr int kWarps = kBlock / kWarp;
constexpr int kMostBuckets = 6144;  // two counters each in 48 KiB of shared memory
constexpr int kFewBuckets = 256;    // kWarps + 2 counters each

/// The item that this thread places, -1 past the last, and its bucket.
struct Item {
  int item, bucket;
};

__device__ Item read_item(const CountingSort& sort) {
  const int64_t i = global_thread();
  if (i >= sort.n) return {-1, -1};
  const int item = sort.order_in ? sort.order_in[i] : static_cast<int>(i);
  return {item, (sort.keys[item] >> sort.shift) & sort.mask};
}

/// counts[buckets] of the block's items, in shared memory.
__device__ void count_items(const Item& item, int32_t* counts, int buckets) {
  for (int bucket = threadIdx.x; bucket < buckets; bucket += kBlock) counts[bucket] = 0;
  __syncthreads();
  if (item.item >= 0) atomicAdd(&counts[item.bucket], 1);
  __syncthreads();
}

__device__ void clear_key_ranges(const CountingSort& sort) {
  if (!sort.key_ranges) return;
  for (int64_t key = global_thread(); key < sort.keys_end; key += int64_t{gridDim.x} * kBlock)
    sort.key_ranges[key] = {0, 0};
}

__global__ void __launch_bounds__(kBlock) count_kernel(const CountingSort sort) {
  begin_kernel();
  extern __shared__ int32_t counts[];
  clear_key_ranges(sort);
  count_items(read_item(sort), counts, sort.buckets);
  int32_t* mine = sort.counts + int64_t{blockIdx.x} * sort.buckets;
  for (int bucket = threadIdx.x; bucket < sort.buckets; bucket += kBlock) mine[bucket] = counts[bucket];
}

/// totals[bucket] = its items, before[bucket] = those of earlier blocks; a warp adds up a bucket.
__device__ void add_up_blocks(const CountingSort& sort, int32_t* totals, int32_t* before) {
  for (int bucket = threadIdx.x / kWarp; bucket < sort.buckets; bucket += kWarps) {
    int total = 0, earlier = 0;
    for (int block = threadIdx.x % kWarp; block < gridDim.x; block += kWarp) {
      const int count = sort.counts[int64_t{block} * sort.buckets + bucket];
      total += count;
      earlier += block < blockIdx.x ? count : 0;
    }
    total = group_reduce<kWarp>(total);
    earlier = group_reduce<kWarp>(earlier);
    if (threadIdx.x % kWarp == 0) {
      totals[bucket] = total;
      before[bucket] = earlier;
    }
  }
  __syncthreads();
}

/// Of a warp's values up to that of this lane.
__device__ int inclusive_sum(int value) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int left = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += left;
  }
  return value;
}

/// next[bucket] += the sum of the totals of the buckets before it, which is the bucket's offset. One warp.
__device__ void scan_totals(const CountingSort& sort, const int32_t* totals, int32_t* next) {
  int carry = 0;
  for (int first = 0; first < sort.buckets; first += kWarp) {
    const int bucket = first + static_cast<int>(threadIdx.x),
              total = bucket < sort.buckets ? totals[bucket] : 0;
    const int inclusive = inclusive_sum(total);
    if (bucket < sort.buckets) {
      const int offset = carry + inclusive - total;
      next[bucket] += offset;
      if (sort.offsets && blockIdx.x == 0) sort.offsets[bucket] = offset;
    }
    carry += __shfl_sync(kAllLanes, inclusive, kWarp - 1);
  }
  if (sort.offsets && blockIdx.x == 0 && threadIdx.x == 0) sort.offsets[sort.buckets] = carry;
}

/// The place of this thread's item. Warps take their turns, lanes of one bucket follow each other.
__device__ int take_place(const Item& item, int32_t* next) {
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned same = __match_any_sync(kAllLanes, item.bucket);
  const int rank = __popc(same & ((1u << lane) - 1));
  int place = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    if (threadIdx.x / kWarp == warp && item.item >= 0) place = next[item.bucket] + rank;
    __syncwarp();
    if (threadIdx.x / kWarp == warp && item.item >= 0 && rank == 0) next[item.bucket] += __popc(same);
    __syncthreads();
  }
  return place;
}

__device__ void put(const CountingSort& sort, int item, int place) {
  sort.order[place] = item;
  if (sort.places) sort.places[item] = place;
  if (sort.key_ranges) {
    int2& range = sort.key_ranges[sort.keys[item]];
    atomicMax(&range.x, static_cast<int>(sort.n) - place);
    atomicMax(&range.y, place + 1);
  }
}

/// The lanes that have the same bucket, or none; for few buckets faster than __match_any_sync.
__device__ unsigned lanes_of_same(int bucket, int buckets) {
  unsigned same = __ballot_sync(kAllLanes, bucket >= 0);
  if (bucket < 0) same = ~same;
  for (int bit = 1; bit < buckets; bit *= 2) {
    const bool set = bucket & bit;
    const unsigned with = __ballot_sync(kAllLanes, set);
    same &= set ? with : ~with;
  }
  return same;
}

/// Where few buckets leave room for counters of every warp: the block's items of each bucket by warp.
struct WarpCounts {
  int32_t* counts;  // [kWarps, stride]
  int stride;       // odd: no bank conflicts

  __device__ WarpCounts(int32_t* memory, int buckets) : counts(memory), stride(buckets | 1) {}
  __device__ int32_t& of(int warp, int bucket) const { return counts[warp * stride + bucket]; }

  /// Counts; returns the place of this thread's item among those of its bucket in the warp.
  __device__ int count(const Item& item, int buckets) const {
    const int warp = threadIdx.x / kWarp;
    for (int bucket = threadIdx.x % kWarp; bucket < buckets; bucket += kWarp) of(warp, bucket) = 0;
    const unsigned same = lanes_of_same(item.bucket, buckets);
    const int rank = __popc(same & ((1u << threadIdx.x % kWarp) - 1));
    __syncwarp();
    if (item.item >= 0 && rank == 0) of(warp, item.bucket) = __popc(same);
    __syncthreads();
    return rank;
  }

  /// Makes them those of the warps before; totals[buckets], where wanted, = those of the block.
  __device__ void scan(int buckets, int32_t* totals) const {
    static_assert(kWarps == kWarp);
    const int lane = threadIdx.x % kWarp;
    for (int bucket = threadIdx.x / kWarp; bucket < buckets; bucket += kWarps) {
      const int mine = of(lane, bucket), inclusive = inclusive_sum(mine);
      of(lane, bucket) = inclusive - mine;
      if (totals && lane == kWarp - 1) totals[bucket] = inclusive;
    }
    __syncthreads();
  }
};

/// A thread per item, behind count_kernel. kFew: at most kFewBuckets.
template <bool kFew>
__global__ void __launch_bounds__(kBlock) place_kernel(const CountingSort sort) {
  begin_kernel();
  auto* totals = static_cast<int32_t*>(dynamic_shared());
  int32_t* next = totals + sort.buckets;
  const Item item = read_item(sort);
  add_up_blocks(sort, totals, next);
  if (threadIdx.x < kWarp) scan_totals(sort, totals, next);
  if constexpr (kFew) {
    const WarpCounts warps(next + sort.buckets, sort.buckets);
    const int rank = warps.count(item, sort.buckets);
    warps.scan(sort.buckets, nullptr);
    if (item.item >= 0)
      put(sort, item.item, next[item.bucket] + warps.of(threadIdx.x / kWarp, item.bucket) + rank);
  } else {
    __syncthreads();
    const int place = take_place(item, next);
    if (item.item >= 0) put(sort, item.item, place);
  }
}

/// A thread per item, all in one cluster.
__global__ void __launch_bounds__(kBlock) cluster_sort_kernel(const CountingSort sort) {
  begin_kernel();
  const int buckets = sort.buckets;
  auto* mine = static_cast<int32_t*>(dynamic_shared());  // the block's totals, which others read
  int32_t *totals = mine + buckets, *next = totals + buckets;
  const WarpCounts warps(next + buckets, buckets);
  clear_key_ranges(sort);
  const Item item = read_item(sort);
  const int rank = warps.count(item, buckets);
  warps.scan(buckets, mine);
  sync_cluster();
  for (int bucket = threadIdx.x; bucket < buckets; bucket += kBlock) {
    int total = 0, before = 0;
    for (int block = 0; block < gridDim.x; ++block) {
      const int count = cluster_shared(mine, block)[bucket];
      total += count;
      before += block < blockIdx.x ? count : 0;
    }
    totals[bucket] = total;
    next[bucket] = before;
  }
  arrive_at_cluster();
  __syncthreads();
  if (threadIdx.x < kWarp) scan_totals(sort, totals, next);
  __syncthreads();
  if (item.item >= 0)
    put(sort, item.item, next[item.bucket] + warps.of(threadIdx.x / kWarp, item.bucket) + rank);
  wait_for_cluster();  // until the other blocks have read `mine`
}

}  // namespace

cudaError_t counting_sort(const CudaContext& context, const CountingSort& sort) {
  if (sort.buckets > kMostBuckets) return cudaErrorNotSupported;
  const auto blocks = static_cast<unsigned>(ceil_div(sort.n, kBlock));
  const bool few = sort.buckets <= kFewBuckets;
  const auto counters = static_cast<size_t>(sort.buckets) * sizeof(int32_t);
  const size_t of_warps = few ? kWarps * (counters + sizeof(int32_t)) : 0;
  if (few && blocks <= (has_clusters(context) ? kMostClusterBlocks : 1))
    return launch_clusters(context, cluster_sort_kernel, dim3(blocks), static_cast<int>(blocks), kBlock,
                           3 * counters + of_warps, sort);
  const cudaError_t status = launch_shared(context, count_kernel, blocks, kBlock, counters, sort);
  if (status != cudaSuccess) return status;
  return launch_shared(context, few ? place_kernel<true> : place_kernel<false>, blocks, kBlock,
                       2 * counters + of_warps, sort);
}

}  // namespace moec::cuda
