// One tile of a product of two bf16 or two f32 factors on the tensor cores, made for products that are over
// before a pipeline would pay: a block fetches many depths at once, and its code is short.
#pragma once

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/tile.cuh"

namespace moec::cuda {

/// A float is the sum of three bf16, the first 8, the next 8 and the last 8 of its 24 bits.
template <class T>
constexpr int kPlanes = std::is_same_v<T, float> ? 3 : 1;

/// A tile of kM x kN, kDepth depths at a time; each warp owns kWarpM x kWarpN of the sums over the depths of
/// its group, one of kGroups that take steps of depths in turns.
template <int kTileM, int kTileN, int kPartDepth, int kWarpRows, int kWarpCols, int kMinBlocksPerSm,
          int kDepthGroups = 1>
struct DenseShape {
  static constexpr int kM = kTileM, kN = kTileN, kDepth = kPartDepth;
  static constexpr int kWarpM = kWarpRows, kWarpN = kWarpCols;
  static constexpr int kGroups = kDepthGroups;
  static constexpr int kGroupWarps = (kM / kWarpM) * (kN / kWarpN);
  static constexpr int kThreads = 32 * kGroups * kGroupWarps;
  static constexpr int kBlocksPerSm = kMinBlocksPerSm;
};

/// A factor of which tiles read what is inside alone, in aligned runs: their code is shorter, and sooner
/// there where a processor has not run it lately.
template <class T, Along kAlong>
struct WholeFactor : Factor<T, kAlong> {};

template <class F>
constexpr bool kIsWhole = std::is_base_of_v<WholeFactor<typename F::Element, F::kAlong>, F>;

__device__ inline uint32_t upper_halves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

/// Writes a run of a factor to its places in planes of kPlane elements, from `to` on in the first.
template <int kPlane, class T, int kRun>
__device__ inline void store_planes(const Packed<T, kRun>& chunk, bf16* to) {
  if constexpr (kPlanes<T> == 1) {
    *reinterpret_cast<Packed<T, kRun>*>(to) = chunk;
  } else {
    float rest[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) rest[j] = __uint_as_float(chunk.word[j]);
#pragma unroll
    for (int p = 0; p < kPlanes<T>; ++p) {
      *reinterpret_cast<uint2*>(to + p * kPlane) = {upper_halves(rest[0], rest[1]),
                                                    upper_halves(rest[2], rest[3])};
#pragma unroll
      for (int j = 0; j < 4; ++j) rest[j] -= __uint_as_float(__float_as_uint(rest[j]) & 0xffff0000u);
    }
  }
}

/// A part of a factor, kRows x kDepth elements, on its way through registers to planes of bf16 in shared
/// memory. These are laid out as in device memory, runs along memory padded by 16 bytes, so that the eight
/// that ldmatrix reads at once lie in different banks.
template <class F, int kRows, int kDepth, int kThreads>
class PlanePart {
  using T = typename F::Element;
  static constexpr int kRun = F::kDepthMajor ? kRows : kDepth, kRuns = F::kDepthMajor ? kDepth : kRows;
  static constexpr int kThreadsPerRun = kRun / F::kRun, kPass = kThreads / kThreadsPerRun;
  static constexpr int kChunks = kRuns / kPass;
  static_assert(kThreads % kThreadsPerRun == 0 && kRuns % kPass == 0);

 public:
  static constexpr bool kOnce = false;  // whether all factors are of one part
  static constexpr int kStride = kRun + 8;
  static constexpr int kPlane = kRuns * kStride;
  static constexpr int kElements = kPlanes<T> * kPlane;

  /// The elements from (i, k) on; those outside are 0.
  __device__ void load(const F& factor, int i, int k) {
    const bool inside =
        kIsWhole<F> || (factor.aligned && i + kRows <= factor.rows && k + kDepth <= factor.depth);
    i += F::kDepthMajor ? place() : run();
    k += F::kDepthMajor ? run() : place();
    const T* from = factor.at(i, k);
    if (inside) {
#pragma unroll
      for (int v = 0; v < kChunks; ++v)
        chunks_[v] = load_packed<F::kRun>(from + v * kPass * factor.stride, 0);
      return;
    }
    if constexpr (!kIsWhole<F>) load_ragged(factor, i, k, from);
  }

  __device__ void store(bf16* planes) const {
    bf16* to = planes + run() * kStride + place();
#pragma unroll
    for (int v = 0; v < kChunks; ++v) store_planes<kPlane>(chunks_[v], to + v * kPass * kStride);
  }

 private:
  using Chunk = Packed<T, F::kRun>;

  /// Of a part that is not wholly inside; the thread's first chunk is (i, k), `from` on.
  __device__ void load_ragged(const F& factor, int i, int k, const T* from) {
#pragma unroll
    for (int v = 0; v < kChunks; ++v) {
      const int count =
          factor.left(i + (F::kDepthMajor ? 0 : v * kPass), k + (F::kDepthMajor ? v * kPass : 0));
      const T* at = from + v * kPass * factor.stride;
      if (factor.aligned) {
        chunks_[v] = count > 0 ? load_packed<F::kRun>(at, 0) : Chunk{};
      } else {
        Vector<T, F::kRun> chunk;
#pragma unroll
        for (int j = 0; j < F::kRun; ++j) chunk.value[j] = j < count ? at[j] : to_storage<T>(0.0f);
        chunks_[v] = __builtin_bit_cast(Chunk, chunk);
      }
    }
  }

  __device__ static int run() { return static_cast<int>(threadIdx.x) / kThreadsPerRun; }
  __device__ static int place() { return static_cast<int>(threadIdx.x) % kThreadsPerRun * F::kRun; }

  Chunk chunks_[kChunks];
};

/// What reads a factor; others than PlanePart change it on its way.
template <class F, int kRows, int kDepth, int kThreads>
struct PartOf {
  using Type = PlanePart<F, kRows, kDepth, kThreads>;
};

/// Sums d[16,8] of products of fragments, at the places that mma.cuh tells.
template <class T>
class DenseSums;

template <>
class DenseSums<bf16> {
 public:
  /// Adds the product of fragments of a and b, of which b[p] holds registers 0 and 1 from `at` on.
  __device__ void add(const uint32_t (&a)[1][4], const uint32_t (&b)[1][4], int at) {
    multiply_add(sums_, a[0], b[0][at], b[0][at + 1]);
  }
  __device__ void end_step() {}
  __device__ Vector<float, 4> total() const { return {sums_[0], sums_[1], sums_[2], sums_[3]}; }

 private:
  float sums_[4] = {};
};

/// Of the products of planes all are added up but those that are below 2^-23 of the whole. Tensor cores round
/// sums towards zero: only products of few depths and the small corrections are summed there, so that errors
/// stay below those of rounding in f32.
template <>
class DenseSums<float> {
 public:
  __device__ void add(const uint32_t (&a)[3][4], const uint32_t (&b)[3][4], int at) {
    const auto multiply = [&](float(&to)[4], int p, int q) {
      multiply_add(to, a[p], b[q][at], b[q][at + 1]);
    };
    multiply(step_, 0, 0);
    multiply(corrections_[0], 0, 1);
    multiply(corrections_[1], 1, 0);
    multiply(corrections_[2], 1, 1);
    multiply(corrections_[0], 0, 2);
    multiply(corrections_[1], 2, 0);
  }
  /// Ends a step of few depths.
  __device__ void end_step() {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      sums_[r] += step_[r];
      step_[r] = 0;
    }
  }
  __device__ Vector<float, 4> total() const {
    Vector<float, 4> out;
#pragma unroll
    for (int r = 0; r < 4; ++r)
      out.value[r] = sums_[r] + (corrections_[0][r] + corrections_[1][r] + corrections_[2][r]);
    return out;
  }

 private:
  float sums_[4] = {}, step_[4] = {};
  float corrections_[3][4] = {};  // several, as the products of one wait for each other
};

/// Computes tiles of the product of two factors A and B of one type, with all threads of a block.
template <class TileShape, class A, class B>
class DenseTile {
  using T = typename A::Element;
  static_assert(std::is_same_v<T, typename B::Element>);
  static constexpr int kM = TileShape::kM, kN = TileShape::kN;
  using PartA = typename PartOf<A, kM, TileShape::kDepth, TileShape::kThreads>::Type;
  using PartB = PlanePart<B, kN, TileShape::kDepth, TileShape::kThreads>;
  static constexpr int kMmaM = TileShape::kWarpM / 16, kMmaN = TileShape::kWarpN / 8;
  static constexpr int kStep = 32;           // depths
  static constexpr int kSumStride = kN + 8;  // so that a warp writes its sums to different banks
  static constexpr int kSums = kM * kSumStride;

 public:
  using Shape = TileShape;
  using Acc = float;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kBlocksPerSm = Shape::kBlocksPerSm;
  static constexpr size_t kSharedBytes =
      sizeof(bf16) * (PartA::kElements + PartB::kElements) + sizeof(float) * Shape::kGroups * kSums;
  /// Runs of four neighbouring sums that a thread gets, as run_row() and run_col() tell.
  static constexpr int kRuns = kM * kN / 4 / kThreads;

  /// The sums of the tile from (row, col) on; calls meanwhile() while data is on its way, or, if kLate, when
  /// the first has come. If kSumsRows, also the sums over all depths of a's rows, to row_sums[kM], by
  /// products with a column of ones. `shared` is free before, and after the next __syncthreads().
  template <bool kSumsRows, bool kLate, class Meanwhile>
  __device__ static void multiply(const A& a, const B& b, int row, int col, void* shared,
                                  Vector<Acc, 4> (&runs)[kRuns], Meanwhile&& meanwhile, float* row_sums) {
    auto* const planes_a = static_cast<bf16*>(shared);
    bf16* const planes_b = planes_a + PartA::kElements;
    auto* const results = reinterpret_cast<float*>(planes_b + PartB::kElements);
    DenseSums<T> sums[kMmaM][kMmaN], of_rows[kMmaM];
    PartA part_a;
    PartB part_b;
    part_a.load(a, row, 0);
    part_b.load(b, col, 0);
    if constexpr (!kLate) meanwhile();
#pragma unroll 1
    for (int left = PartA::kOnce ? Shape::kDepth : a.depth; left > 0; left -= Shape::kDepth) {
      part_a.store(planes_a);
      part_b.store(planes_b);
      if (kLate && left == a.depth) meanwhile();
      __syncthreads();
      if (left > Shape::kDepth) {
        part_a.load(a, row, a.depth - left + Shape::kDepth);
        part_b.load(b, col, a.depth - left + Shape::kDepth);
      }
#pragma unroll
      for (int depth = 0; depth < Shape::kDepth; depth += kStep * Shape::kGroups)
        multiply_step<kSumsRows>(planes_a, planes_b, depth + group() * kStep, sums, of_rows);
      if (left > Shape::kDepth) __syncthreads();  // what is in shared memory is no longer needed
    }
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmaN; ++j) {
        const auto total = sums[i][j].total();
        float* to = results + group() * kSums + (warp_row() + i * 16 + lane() / 4) * kSumStride + warp_col() +
                    j * 8 + lane() % 4 * 2;
        *reinterpret_cast<float2*>(to) = {total.value[0], total.value[1]};
        *reinterpret_cast<float2*>(to + 8 * kSumStride) = {total.value[2], total.value[3]};
      }
    }
    if constexpr (kSumsRows) {
#pragma unroll
      for (int i = 0; i < kMmaM; ++i) {
        const auto total = of_rows[i].total();
        if (warp_col() > 0 || lane() % 4 > 0) continue;
        float* to = results + group() * kSums + row_part(warp_row() + i * 16 + lane() / 4);
        to[0] = total.value[0];
        to[8 * kSumStride] = total.value[2];
      }
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const float* from = results + run_row<Shape>(r) * kSumStride + run_col<Shape>(r);
      runs[r] = load<4>(from, 0);
#pragma unroll
      for (int g = 1; g < Shape::kGroups; ++g) {
        const auto part = load<4>(from + g * kSums, 0);
#pragma unroll
        for (int j = 0; j < 4; ++j) runs[r].value[j] += part.value[j];
      }
    }
    if (kSumsRows && threadIdx.x < kM) {
      float sum = 0;
#pragma unroll
      for (int g = 0; g < Shape::kGroups; ++g)
        sum += (results + g * kSums)[row_part(static_cast<int>(threadIdx.x))];
      row_sums[threadIdx.x] = sum;
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int group() { return static_cast<int>(threadIdx.x) / 32 / Shape::kGroupWarps; }
  /// Place of a sum over a row of a: behind the tile's, in their padding.
  __device__ static int row_part(int row) { return row * kSumStride + kN; }
  __device__ static int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 % Shape::kGroupWarps / (kN / Shape::kWarpN) * Shape::kWarpM;
  }
  __device__ static int warp_col() {
    return static_cast<int>(threadIdx.x) / 32 % (kN / Shape::kWarpN) * Shape::kWarpN;
  }

  template <bool kSumsRows>
  __device__ static void multiply_step(const bf16* planes_a, const bf16* planes_b, int depth,
                                       DenseSums<T> (&sums)[kMmaM][kMmaN], DenseSums<T> (&of_rows)[kMmaM]) {
    uint32_t b[kPlanes<T>][4];  // two neighbours of 16 depths, or 32 depths of one fragment
    if constexpr (kMmaN == 1) {
#pragma unroll
      for (int p = 0; p < kPlanes<T>; ++p) load_b_step(b[p], planes_b + p * PartB::kPlane, warp_col(), depth);
    }
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      uint32_t a[kMmaM][kPlanes<T>][4];
#pragma unroll
      for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
        for (int p = 0; p < kPlanes<T>; ++p)
          load_a<A::kDepthMajor>(a[i][p], planes_a + p * PartA::kPlane, PartA::kStride, warp_row() + i * 16,
                                 depth + k);
        if constexpr (kSumsRows) {
          constexpr uint32_t kOnes = 0x3f803f80u;
          uint32_t ones[kPlanes<T>][4] = {};
          ones[0][0] = ones[0][1] = kOnes;
          if (warp_col() == 0) of_rows[i].add(a[i], ones, 0);
        }
      }
#pragma unroll
      for (int j = 0; j < kMmaN; j += 2) {
        if constexpr (kMmaN > 1) {
#pragma unroll
          for (int p = 0; p < kPlanes<T>; ++p)
            load_b<B::kDepthMajor>(b[p], planes_b + p * PartB::kPlane, PartB::kStride, warp_col() + j * 8,
                                   depth + k);
        }
#pragma unroll
        for (int i = 0; i < kMmaM; ++i) {
          sums[i][j].add(a[i], b, kMmaN > 1 ? 0 : k / 8);
          if constexpr (kMmaN > 1) sums[i][j + 1].add(a[i], b, 2);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmaN; ++j) sums[i][j].end_step();
      of_rows[i].end_step();
    }
  }

  /// Fragments of b[32,8]: registers 0 and 1 of the upper 16 depths, 2 and 3 of the others.
  __device__ static void load_b_step(uint32_t (&b)[4], const bf16* plane, int col, int depth) {
    if constexpr (B::kDepthMajor) {
      load_matrices<true>(b, plane + (depth + lane()) * PartB::kStride + col);
    } else {
      load_matrices<false>(b, plane + (col + lane() % 8) * PartB::kStride + depth + lane() / 8 * 8);
    }
  }
};

}  // namespace moec::cuda
