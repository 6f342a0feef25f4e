// RMSNorm and LayerNorm over the last dimension D, forward. RMSNorm is LayerNorm with a mean of 0 and no
// bias.
#include <cmath>

#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

template <class T, class Acc = Accumulator<T>>
struct Norm {
  const T* x;
  const T* weight;
  const T* bias;  // null where there is none
  T* y;           // may be x
  Acc* mean;      // written by LayerNorm only
  Acc* rstd;
  int64_t rows;
  int cols;
  Acc eps;
};

/// What of a row is not held is read again for the variance and for y, from the cache. The variance is of
/// centred values: no cancellation.
template <bool kCentred, class T, int kWidth, int kGroup>
__global__ void norm_kernel(const Norm<T> norm) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kGroup>();
  if (row >= norm.rows) return;
  const T* x = norm.x + row * norm.cols;
  const auto held = hold_places<kGroup>(norm.cols / kWidth, [x](int64_t i) { return load<kWidth>(x, i); });
  const auto cols = static_cast<Acc>(norm.cols);

  Acc mean = 0;
  if constexpr (kCentred) {
    Acc sum = 0;
    held.for_each([&](int64_t, const Vector<T, kWidth>& v) {
#pragma unroll
      for (const T value : v.value) sum += static_cast<Acc>(value);
    });
    mean = group_reduce<kGroup>(sum) / cols;
  }
  Acc squares = 0;
  held.for_each([&](int64_t, const Vector<T, kWidth>& v) {
#pragma unroll
    for (const T value : v.value) {
      const Acc centred = static_cast<Acc>(value) - mean;
      squares += centred * centred;
    }
  });
  const Acc rstd = 1 / std::sqrt(group_reduce<kGroup>(squares) / cols + norm.eps);

  held.for_each([&](int64_t i, Vector<T, kWidth> v) {
    const auto weight = load<kWidth>(norm.weight, i);
    const auto bias = norm.bias ? load<kWidth>(norm.bias, i) : Vector<T, kWidth>{};
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const Acc normal = (static_cast<Acc>(v.value[j]) - mean) * rstd;
      v.value[j] =
          to_storage<T>(normal * static_cast<Acc>(weight.value[j]) + static_cast<Acc>(bias.value[j]));
    }
    store(norm.y + row * norm.cols, i, v);
  });
  if (group_lane<kGroup>() == 0) {
    if constexpr (kCentred) norm.mean[row] = mean;
    norm.rstd[row] = rstd;
  }
}

template <bool kCentred>
cudaError_t run_norm(const CudaContext& context, const TensorView& x, const TensorView& weight,
                     const TensorView& bias, const TensorView& y, const TensorView& mean,
                     const TensorView& rstd, float eps) {
  return with_type(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const Norm<T> norm = {
        x.as<const T>(), weight.as<const T>(), bias.as<const T>(), y.as<T>(),
        mean.as<Acc>(),  rstd.as<Acc>(),       x.rows(),           static_cast<int>(x.cols()),
        Acc{eps}};
    return with_row_layout<T>(x.cols(), {&x, &weight, &bias, &y}, [&]<int kWidth, int kGroup>() {
      return launch(context, norm_kernel<kCentred, T, kWidth, kGroup>, group_blocks<kGroup>(norm.rows),
                    kThreads, norm);
    });
  });
}

}  // namespace

cudaError_t rmsnorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<false>(context, call.inputs[0], call.inputs[1], {}, call.outputs[0], {}, call.outputs[1],
                         call.attrs<fb::RmsNormT>().eps);
}

cudaError_t layernorm(const KernelCall& call, const CudaContext& context) {
  return run_norm<true>(context, call.inputs[0], call.inputs[1], call.inputs[2], call.outputs[0],
                        call.outputs[1], call.outputs[2], call.attrs<fb::LayerNormT>().eps);
}

}  // namespace moec::cuda
