// Matrix products c[m,n] = sum_k a(m,k) b(n,k) cut into tiles: how a tile reads its factors and writes its
// result. The engines in simt_tile.cuh and mma_tile.cuh compute one tile with one block.
#pragma once

#include <cstdint>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/vector.cuh"

namespace moec::cuda {

/// A stored value in the type it is computed in.
template <class T>
__device__ inline Accumulator<T> widen(T value) {
  return static_cast<Accumulator<T>>(value);
}

/// Whether rows of `stride` elements from `data` on can be read in runs of 16 bytes.
template <class T>
__host__ __device__ bool runs_aligned(const T* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

/// The place in a tile of the run number r of four neighbours that a thread gets: those of a warp lie next to
/// each other.
template <class Shape>
__device__ int run_row(int r) {
  return (static_cast<int>(threadIdx.x) + r * Shape::kThreads) * 4 / Shape::kN;
}
template <class Shape>
__device__ int run_col(int r) {
  return (static_cast<int>(threadIdx.x) + r * Shape::kThreads) * 4 % Shape::kN;
}

/// The index of a factor that runs along memory.
enum class Along { kDepth, kRows };

/// A factor of a product: element (i, k) of rows x depth is at data[i * stride + k] along depth, at data[k *
/// stride + i] along rows. Elements outside read as 0. `aligned`: runs_aligned(), and the extent along memory
/// is whole runs of 16 bytes (which load4 does not need).
template <class T, Along kAlongT>
struct Factor {
  using Element = T;
  static constexpr Along kAlong = kAlongT;
  static constexpr bool kDepthMajor = kAlong == Along::kRows;

  const T* data;
  int64_t stride;
  int rows;
  int depth;
  bool aligned;

  /// Of the elements from (i, k) along memory, how many exist; 0 or less where (i, k) does not.
  __device__ int left(int i, int k) const {
    if constexpr (kDepthMajor) {
      return k < depth ? rows - i : 0;
    } else {
      return i < rows ? depth - k : 0;
    }
  }
  __device__ const T* at(int i, int k) const {
    return kDepthMajor ? data + k * stride + i : data + i * stride + k;
  }

  /// Four elements from (i, k) along memory, i or k a multiple of four.
  __device__ Vector<Accumulator<T>, 4> load4(int i, int k) const {
    Vector<Accumulator<T>, 4> out;
    const int count = left(i, k);
    if (aligned && count >= 4) {
      const auto in = *reinterpret_cast<const Vector<T, 4>*>(at(i, k));
#pragma unroll
      for (int j = 0; j < 4; ++j) out.value[j] = widen(in.value[j]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) out.value[j] = j < count ? widen(at(i, k)[j]) : Accumulator<T>{0};
    }
    return out;
  }

  /// Elements in a run of 16 bytes.
  static constexpr int kRun = 16 / sizeof(T);

  /// Starts to copy a run from (i, k) along memory to shared memory; i or k is a multiple of kRun.
  __device__ void copy_async(int i, int k, T* to) const {
    const int count = left(i, k);
    if (aligned) {
      copy16_async(to, count > 0 ? at(i, k) : data, count > 0);
    } else {
      Vector<T, kRun> out;
#pragma unroll
      for (int j = 0; j < kRun; ++j) out.value[j] = j < count ? at(i, k)[j] : to_storage<T>(0.0f);
      *reinterpret_cast<Vector<T, kRun>*>(to) = out;
    }
  }
};

/// Where a product goes: rows x cols, to which a row of `bias` is added if there is one, and the old contents
/// if `accumulate`. Elements outside are not written. `aligned`: runs_aligned().
template <class T, class TBias = T>
struct Result {
  using Acc = Accumulator<T>;

  T* data;
  int64_t stride;
  int rows;
  int cols;
  const TBias* bias;
  bool accumulate;
  bool aligned;

  /// Writes kN neighbours in a row; col is a multiple of kN.
  template <int kN>
  __device__ void store(int row, int col, Vector<Acc, kN> sums) const {
    if (row >= rows || col >= cols) return;
    T* to = data + row * stride + col;
    const int count = cols - col;
    const bool whole = aligned && count >= kN;
    Vector<T, kN> out;
    if (accumulate && whole) out = *reinterpret_cast<const Vector<T, kN>*>(to);
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      if (j >= count) continue;
      if (bias) sums.value[j] += widen(bias[col + j]);
      if (accumulate) sums.value[j] += widen(whole ? out.value[j] : to[j]);
      out.value[j] = to_storage<T>(sums.value[j]);
    }
    if (whole) {
      *reinterpret_cast<Vector<T, kN>*>(to) = out;
    } else {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        if (j < count) to[j] = out.value[j];
      }
    }
  }
};

}  // namespace moec::cuda
