// RMSNorm and LayerNorm over the last dimension D, alone and of the sum of two values, forward. A sum is
// normalised as it is stored, which is what the backward pass reads.
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

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

/// What of a row is not held is read again for the variance and for y, from the cache.
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
      sum = add_values(sum, values);
    });
    mean = group_reduce<kGroup>(sum) * norm.share;
  }
  Acc squares = 0;
  held.for_each([&](int64_t, const Packed<T, kWidth>& v) {
    Acc values[kWidth];
    unpack(v, values);
    squares = add_squares(squares, values, mean);
  });
  const Acc rstd = inverse_deviation<T>(group_reduce<kGroup>(squares) * norm.share, norm.eps);

  held.for_each([&](int64_t i, const Packed<T, kWidth>& v) {
    if constexpr (kSum) store(norm.sum + row * norm.cols, i, v);
    Acc values[kWidth], weights[kWidth], biases[kWidth] = {};
    unpack(v, values);
    unpack(i == first ? first_weight : load_packed<kWidth>(norm.weight, i), weights);
    if (kCentred && norm.bias) unpack(i == first ? first_bias : load_packed<kWidth>(norm.bias, i), biases);
    normalise(values, mean, rstd, weights, biases);
    store(norm.y + row * norm.cols, i, pack<T>(values));
  });
  if (group_lane<kGroup>() == 0) {
    if constexpr (kCentred) norm.mean[row] = mean;
    norm.rstd[row] = rstd;
  }
}

template <bool kCentred, bool kSum>
cudaError_t run_norm(const CudaContext& context, const NormOperands& operands) {
  return with_type(operands.x.dtype, [&]<class T>() {
    const Norm<T> norm = as_norm<T>(operands);
    return with_short_row_layout<T>(
        norm.cols,
        {&operands.x, &operands.addend, &operands.weight, &operands.bias, &operands.sum, &operands.y},
        [&]<int kWidth, int kGroup, bool kShort>() {
          return launch(context, norm_kernel<kCentred, kSum, T, kWidth, kGroup, kShort>,
                        group_blocks<kGroup>(norm.rows), kThreads, norm);
        });
  });
}

}  // namespace

cudaError_t rmsnorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<false, false>(context, rmsnorm_operands(call));
}

cudaError_t layernorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<true, false>(context, layernorm_operands(call));
}

cudaError_t add_rmsnorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<false, true>(context, {.x = call.inputs[0],
                                         .addend = call.inputs[1],
                                         .weight = call.inputs[2],
                                         .bias = {},
                                         .sum = call.outputs[0],
                                         .y = call.outputs[1],
                                         .mean = {},
                                         .rstd = call.outputs[2],
                                         .eps = call.attrs<fb::FusedNormT>().eps});
}

cudaError_t add_layernorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<true, true>(context, {.x = call.inputs[0],
                                        .addend = call.inputs[1],
                                        .weight = call.inputs[2],
                                        .bias = call.inputs[3],
                                        .sum = call.outputs[0],
                                        .y = call.outputs[1],
                                        .mean = call.outputs[2],
                                        .rstd = call.outputs[3],
                                        .eps = call.attrs<fb::FusedNormT>().eps});
}

}  // namespace moec::cuda
