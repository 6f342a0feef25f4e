#include "kernels/cuda/counting_sort.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

// A thread per item.
constexpr int kBlock = static_cast<int>(kExpertIndexBlock);
constexpr int kWarps = kBlock / kWarp;
constexpr int kMostBuckets = 6144;  // two counters each in 48 KiB of shared memory

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

/// next[bucket] += the sum of the totals of the buckets before it, which is the bucket's offset. One warp.
__device__ void scan_totals(const CountingSort& sort, const int32_t* totals, int32_t* next) {
  int carry = 0;
  for (int first = 0; first < sort.buckets; first += kWarp) {
    const int bucket = first + static_cast<int>(threadIdx.x),
              total = bucket < sort.buckets ? totals[bucket] : 0;
    int inclusive = total;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int left = __shfl_up_sync(kAllLanes, inclusive, distance);
      if (threadIdx.x >= distance) inclusive += left;
    }
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

/// A single block counts its items itself, more have been counted by count_kernel.
__global__ void __launch_bounds__(kBlock) place_kernel(const CountingSort sort) {
  begin_kernel();
  extern __shared__ int32_t totals[];
  int32_t* next = totals + sort.buckets;
  const Item item = read_item(sort);
  if (gridDim.x == 1) {
    clear_key_ranges(sort);
    for (int bucket = threadIdx.x; bucket < sort.buckets; bucket += kBlock) next[bucket] = 0;
    count_items(item, totals, sort.buckets);
  } else {
    add_up_blocks(sort, totals, next);
  }
  if (threadIdx.x < kWarp) scan_totals(sort, totals, next);
  __syncthreads();
  const int place = take_place(item, next);
  if (item.item < 0) return;
  sort.order[place] = item.item;
  if (sort.places) sort.places[item.item] = place;
  if (sort.key_ranges) {
    int2& range = sort.key_ranges[sort.keys[item.item]];
    atomicMax(&range.x, static_cast<int>(sort.n) - place);
    atomicMax(&range.y, place + 1);
  }
}

}  // namespace

cudaError_t counting_sort(const CudaContext& context, const CountingSort& sort) {
  if (sort.buckets > kMostBuckets) return cudaErrorNotSupported;
  const int64_t blocks = ceil_div(sort.n, kBlock);
  const size_t counter_bytes = sizeof(int32_t) * static_cast<size_t>(sort.buckets);
  if (blocks > 1)
    if (const cudaError_t status = launch_shared(context, count_kernel, blocks, kBlock, counter_bytes, sort);
        status != cudaSuccess)
      return status;
  return launch_shared(context, place_kernel, blocks, kBlock, 2 * counter_bytes, sort);
}

}  // namespace moec::cuda
