// RMSNorm and LayerNorm over the last dimension D, alone and of the sum of two values, forward. RMSNorm is
// LayerNorm with a mean of 0 and no bias. A sum is normalised as it is stored, which is what the backward
// pass reads.
#include <cmath>

#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

template <class T, class Acc = Accumulator<T>>
struct Norm {
  const T* x;
  const T* addend;  // with a sum only: x + addend is normalised, and written to sum
  const T* weight;
  const T* bias;  // null where there is none
  T* sum;         // may be x or addend
  T* y;           // likewise
  Acc* mean;      // written by LayerNorm only
  Acc* rstd;
  int64_t rows;
  int cols;
  Acc eps;
};

/// a + b as it is stored.
template <class T, int kWidth>
__device__ Packed<T, kWidth> add(const Packed<T, kWidth>& a, const Packed<T, kWidth>& b) {
  Accumulator<T> sums[kWidth], addends[kWidth];
  unpack(a, sums);
  unpack(b, addends);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sums[j] += addends[j];
  return pack<T>(sums);
}

/// What of a row is not held is read again for the variance and for y, from the cache. The variance is of
/// centred values: no cancellation.
template <bool kCentred, bool kSum, class T, int kWidth, int kGroup, bool kShort>
__global__ void __launch_bounds__(kThreads) norm_kernel(const Norm<T> norm) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kGroup>();
  if (row >= norm.rows) return;
  const T* x = norm.x + row * norm.cols;
  const T* addend = norm.addend + row * norm.cols;
  const auto held = hold_places<kGroup, kShort>(norm.cols / kWidth, [x, addend](int64_t i) {
    if constexpr (kSum)
      return add<T>(load_packed<kWidth>(x, i), load_packed<kWidth>(addend, i));
    else
      return load_packed<kWidth>(x, i);
  });
  const auto cols = static_cast<Acc>(norm.cols);
  // Of the first place, so that a short row waits for memory once.
  const int64_t first = group_lane<kGroup>();
  Packed<T, kWidth> first_weight = {}, first_bias = {};
  if (first < norm.cols / kWidth) {
    first_weight = load_packed<kWidth>(norm.weight, first);
    if (kCentred && norm.bias) first_bias = load_packed<kWidth>(norm.bias, first);
  }

  Acc mean = 0;
  if constexpr (kCentred) {
    Acc sum = 0;
    held.for_each([&](int64_t, const Packed<T, kWidth>& v) {
      Acc values[kWidth];
      unpack(v, values);
#pragma unroll
      for (const Acc value : values) sum += value;
    });
    mean = group_reduce<kGroup>(sum) / cols;
  }
  Acc squares = 0;
  held.for_each([&](int64_t, const Packed<T, kWidth>& v) {
    Acc values[kWidth];
    unpack(v, values);
#pragma unroll
    for (const Acc value : values) squares += (value - mean) * (value - mean);
  });
  const Acc rstd = 1 / std::sqrt(group_reduce<kGroup>(squares) / cols + norm.eps);

  held.for_each([&](int64_t i, const Packed<T, kWidth>& v) {
    if constexpr (kSum) store(norm.sum + row * norm.cols, i, v);
    Acc values[kWidth], weights[kWidth], biases[kWidth] = {};
    unpack(v, values);
    unpack(i == first ? first_weight : load_packed<kWidth>(norm.weight, i), weights);
    if (kCentred && norm.bias) unpack(i == first ? first_bias : load_packed<kWidth>(norm.bias, i), biases);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = (values[j] - mean) * rstd * weights[j] + biases[j];
    store(norm.y + row * norm.cols, i, pack<T>(values));
  });
  if (group_lane<kGroup>() == 0) {
    if constexpr (kCentred) norm.mean[row] = mean;
    norm.rstd[row] = rstd;
  }
}

struct NormViews {
  const TensorView &x, &addend, &weight, &bias, &sum, &y, &mean, &rstd;
};

template <bool kCentred, bool kSum>
cudaError_t run_norm(const CudaContext& context, const NormViews& views, float eps) {
  return with_type(views.x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const Norm<T> norm = {.x = views.x.as<const T>(),
                          .addend = views.addend.as<const T>(),
                          .weight = views.weight.as<const T>(),
                          .bias = views.bias.as<const T>(),
                          .sum = views.sum.as<T>(),
                          .y = views.y.as<T>(),
                          .mean = views.mean.as<Acc>(),
                          .rstd = views.rstd.as<Acc>(),
                          .rows = views.x.rows(),
                          .cols = static_cast<int>(views.x.cols()),
                          .eps = Acc{eps}};
    return with_short_row_layout<T>(
        norm.cols, {&views.x, &views.addend, &views.weight, &views.bias, &views.sum, &views.y},
        [&]<int kWidth, int kGroup, bool kShort>() {
          return launch(context, norm_kernel<kCentred, kSum, T, kWidth, kGroup, kShort>,
                        group_blocks<kGroup>(norm.rows), kThreads, norm);
        });
  });
}

constexpr TensorView kAbsent;

}  // namespace

cudaError_t rmsnorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<false, false>(context,
                                {.x = call.inputs[0],
                                 .addend = kAbsent,
                                 .weight = call.inputs[1],
                                 .bias = kAbsent,
                                 .sum = kAbsent,
                                 .y = call.outputs[0],
                                 .mean = kAbsent,
                                 .rstd = call.outputs[1]},
                                call.attrs<fb::RmsNormT>().eps);
}

cudaError_t add_rmsnorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<false, true>(context,
                               {.x = call.inputs[0],
                                .addend = call.inputs[1],
                                .weight = call.inputs[2],
                                .bias = kAbsent,
                                .sum = call.outputs[0],
                                .y = call.outputs[1],
                                .mean = kAbsent,
                                .rstd = call.outputs[2]},
                               call.attrs<fb::FusedNormT>().eps);
}

cudaError_t layernorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<true, false>(context,
                               {.x = call.inputs[0],
                                .addend = kAbsent,
                                .weight = call.inputs[1],
                                .bias = call.inputs[2],
                                .sum = kAbsent,
                                .y = call.outputs[0],
                                .mean = call.outputs[1],
                                .rstd = call.outputs[2]},
                               call.attrs<fb::LayerNormT>().eps);
}

cudaError_t add_layernorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<true, true>(context,
                              {.x = call.inputs[0],
                               .addend = call.inputs[1],
                               .weight = call.inputs[2],
                               .bias = call.inputs[3],
                               .sum = call.outputs[0],
                               .y = call.outputs[1],
                               .mean = call.outputs[2],
                               .rstd = call.outputs[3]},
                              call.attrs<fb::FusedNormT>().eps);
}

}  // namespace moec::cuda
