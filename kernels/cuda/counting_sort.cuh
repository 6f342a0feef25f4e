// A stable counting sort that reads nothing on the host.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// One pass: puts items 0 .. n-1 in the order of their buckets, those of one bucket in the order they came
/// in. The bucket of an item is (keys[item] >> shift) & mask.
struct CountingSort {
  const int32_t* keys;
  int64_t n;
  int shift;
  int32_t mask;
  int buckets;
  const int32_t* order_in;     // [n] the order that items come in; null: 0 .. n-1
  int32_t* order;              // [n] the items sorted
  int32_t* places = nullptr;   // [n] the place of each item in `order`
  int32_t* offsets = nullptr;  // [buckets + 1] the place where each bucket begins
  int2* key_ranges =
      nullptr;           // by key: {n - first place, last place + 1}, zeros for a key that does not occur;
  int64_t keys_end = 0;  // wanted of the last pass of a sort by keys in [0, keys_end)
  int32_t* counts;       // workspace [ceil(n / kExpertIndexBlock), buckets]
};

/// One launch for up to 256 buckets and the items of one cluster of blocks of kExpertIndexBlock, or of one
/// block where there are no clusters; two for more. cudaErrorNotSupported beyond 6144 buckets.
cudaError_t counting_sort(const CudaContext& context, const CountingSort& sort);

}  // namespace moec::cuda
