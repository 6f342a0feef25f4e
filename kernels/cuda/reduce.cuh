// Reductions over the threads of a warp or a block, in an order that never changes.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/types.cuh"
#include "kernels/cuda/vector.cuh"

namespace moec::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/// A row is the work of a group of threads: a part of a warp, a warp, or a block of kThreads. The row and the
/// place in the group of this thread.
template <int kGroup>
__device__ inline int64_t group_row() {
  return global_thread() / kGroup;
}
template <int kGroup>
__device__ inline int group_lane() {
  return static_cast<int>(threadIdx.x) % kGroup;
}

/// This thread's places of a row of `count`: i = lane, lane + kGroup, ... The values of the first four are
/// held, so that their loads are in flight together and a row that is short is read once. A kShort row
/// has one place per thread at most, and no code for more.
template <int kGroup, class Load, bool kShort = false>
class HeldPlaces {
 public:
  __device__ HeldPlaces(int64_t count, Load load) : count_(count), load_(load) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      if (place(j) < count_) held_[j] = load_(place(j));
  }

  /// use(i, load(i)) for all places in their order.
  template <class Use>
  __device__ void for_each(Use use) const {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      if (place(j) < count_) use(place(j), held_[j]);
    if constexpr (!kShort) {
#pragma unroll 4
      for (int64_t i = place(kHeld); i < count_; i += kGroup) use(i, load_(i));
    }
  }

  /// use(i, load(i), other.load(i)) for all places in their order.
  template <class Other, class Use>
  __device__ void for_each(const HeldPlaces<kGroup, Other, kShort>& other, Use use) const {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      if (place(j) < count_) use(place(j), held_[j], other.held_[j]);
    if constexpr (!kShort) {
      for (int64_t i = place(kHeld); i < count_; i += kGroup) use(i, load_(i), other.load_(i));
    }
  }

 private:
  template <int, class, bool>
  friend class HeldPlaces;

  static constexpr int kHeld = kShort ? 1 : 4;

  __device__ static int64_t place(int j) { return group_lane<kGroup>() + j * kGroup; }

  int64_t count_;
  Load load_;
  decltype(std::declval<Load>()(int64_t{})) held_[kHeld];
};

template <int kGroup, bool kShort = false, class Load>
__device__ HeldPlaces<kGroup, Load, kShort> hold_places(int64_t count, Load load) {
  return {count, load};
}

/// Returns body.template operator()<kGroup>() for rows of `vectors` vectors.
template <class Body>
cudaError_t with_group(int64_t vectors, Body&& body) {
  return vectors <= 8 * kWarp ? body.template operator()<kWarp>() : body.template operator()<kThreads>();
}

/// Blocks of kThreads for one group per row.
template <int kGroup>
constexpr int64_t group_blocks(int64_t rows) {
  return ceil_div(rows * kGroup, kThreads);
}

/// Layout of a kernel over rows: body.template operator()<kWidth, kGroup>().
template <class T, class Body>
cudaError_t with_row_layout(int64_t cols, std::initializer_list<const TensorView*> views, Body&& body) {
  return with_width<T>(cols, views, [&]<int kWidth>() {
    return with_group(cols / kWidth,
                      [&]<int kGroup>() { return body.template operator()<kWidth, kGroup>(); });
  });
}

/// The same with whether rows are kShort: body.template operator()<kWidth, kGroup, kShort>().
template <class T, class Body>
cudaError_t with_short_row_layout(int64_t cols, std::initializer_list<const TensorView*> views, Body&& body) {
  return with_row_layout<T>(cols, views, [&]<int kWidth, int kGroup>() {
    if constexpr (kWidth > 1 && kGroup == kWarp)
      if (cols / kWidth <= kGroup) return body.template operator()<kWidth, kGroup, true>();
    return body.template operator()<kWidth, kGroup, false>();
  });
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

/// Of a NaN and a number the number.
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return std::fmax(a, b);
  }
};

template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

/// op over the values of a group, for all its threads, with all threads of its warps. op is associative up to
/// rounding and commutative; a group larger than a warp is the whole block.
template <int kGroup, class T, class Op = Sum>
__device__ T group_reduce(T value, Op op = {}) {
#pragma unroll
  for (int mask = (kGroup < kWarp ? kGroup : kWarp) / 2; mask > 0; mask /= 2)
    value = op(value, shuffle_xor(value, mask));
  if constexpr (kGroup > kWarp) {
    __shared__ T warps[kGroup / kWarp];
    __syncthreads();  // the results of an earlier reduction have been read
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warps[0];
#pragma unroll
    for (int warp = 1; warp < kGroup / kWarp; ++warp) value = op(value, warps[warp]);
  }
  return value;
}

}  // namespace moec::cuda
