// A factor whose rows are normalised on their way to the tensor cores.
#pragma once

#include "kernels/cuda/dense_tile.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {

/// A factor along depth, of rows x that a norm makes the rows y of a product. Base is Factor or WholeFactor;
/// its depth is that of one part at most, in whole runs, and all of the norm's operands are aligned.
template <class Base>
struct NormedFactor : Base {
  Norm<typename Base::Element> norm;
  bool writes = false;  // y and the statistics, which one of the blocks that share rows does
};

template <class F>
constexpr bool kIsNormed = false;
template <class Base>
constexpr bool kIsNormed<NormedFactor<Base>> = true;

/// A part of kRows rows, each of which kThreads / kRows threads hold and sum up, in the order of the norm's
/// own kernel. In planes it is as a PlanePart.
template <class F, int kRows, int kDepth, int kThreads>
class NormedPart {
  using T = typename F::Element;
  using Acc = Accumulator<T>;
  static constexpr int kWidth = F::kRun, kGroup = kThreads / kRows, kChunks = kDepth / kWidth / kGroup;
  static_assert(F::kAlong == Along::kDepth && kGroup <= kWarp && kGroup * kRows == kThreads &&
                kChunks * kGroup * kWidth == kDepth);

 public:
  static constexpr bool kOnce = true;
  static constexpr int kStride = kDepth + 8, kPlane = kRows * kStride, kElements = kPlanes<T> * kPlane;

  /// The rows from `i` on; `factor` is used until they are stored.
  __device__ void load(const F& factor, int i, int) {
    factor_ = &factor;
    row_ = i + row();
#pragma unroll
    for (int v = 0; v < kChunks; ++v)
      if (inside(v)) x_[v] = load_packed<kWidth>(factor.at(row_, place(v)), 0);
#pragma unroll
    for (int v = 0; v < kChunks; ++v) {
      if (!inside(v)) continue;
      weight_[v] = load_packed<kWidth>(factor.norm.weight + place(v), 0);
      if (factor.norm.bias) bias_[v] = load_packed<kWidth>(factor.norm.bias + place(v), 0);
    }
  }

  __device__ void store(bf16* planes) {
    const Norm<T>& norm = factor_->norm;
    Acc values[kChunks][kWidth];
#pragma unroll
    for (int v = 0; v < kChunks; ++v) unpack(x_[v], values[v]);
    const Acc mean =
        norm.mean ? over_row([&](int v) { return add_values(Acc{0}, values[v]); }) * norm.share : Acc{0};
    const Acc squares = over_row([&](int v) { return add_squares(Acc{0}, values[v], mean); });
    const Acc rstd = inverse_deviation<T>(squares * norm.share, norm.eps);
    const bool writes = factor_->writes && (kIsWhole<F> || row_ < norm.rows);
#pragma unroll
    for (int v = 0; v < kChunks; ++v) {
      Acc weights[kWidth], biases[kWidth];
      unpack(weight_[v], weights);
      unpack(bias_[v], biases);
      normalise(values[v], mean, rstd, weights, biases);
      const Packed<T, kWidth> y = inside(v) ? pack<T>(values[v]) : Packed<T, kWidth>{};
      store_planes<kPlane>(y, planes + row() * kStride + place(v));
      if (writes && inside(v)) cuda::store(norm.y + int64_t{row_} * norm.cols + place(v), 0, y);
    }
    if (!writes || place(0) > 0) return;
    if (norm.mean) norm.mean[row_] = mean;
    norm.rstd[row_] = rstd;
  }

 private:
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kGroup; }
  __device__ static int place(int v) {
    return (static_cast<int>(threadIdx.x) % kGroup + v * kGroup) * kWidth;
  }
  __device__ bool inside(int v) const {
    return kIsWhole<F> || (row_ < factor_->rows && place(v) < factor_->depth);
  }

  /// The sum of sum(v) over the runs of the row.
  template <class Sum>
  __device__ Acc over_row(Sum&& sum) const {
    Acc sums[kChunks];
#pragma unroll
    for (int v = 0; v < kChunks; ++v) sums[v] = inside(v) ? sum(v) : Acc{0};
#pragma unroll
    for (int half = kChunks / 2; half > 0; half /= 2) {
#pragma unroll
      for (int v = 0; v < half; ++v) sums[v] += sums[v + half];
    }
    return group_reduce<kGroup>(sums[0]);
  }

  const F* factor_;
  int row_;
  Packed<T, kWidth> x_[kChunks] = {}, weight_[kChunks] = {}, bias_[kChunks] = {};
};

template <class Base, int kRows, int kDepth, int kThreads>
struct PartOf<NormedFactor<Base>, kRows, kDepth, kThreads> {
  using Type = NormedPart<NormedFactor<Base>, kRows, kDepth, kThreads>;
};

}  // namespace moec::cuda
