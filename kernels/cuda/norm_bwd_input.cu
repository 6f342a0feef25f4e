// The gradient that RMSNorm and LayerNorm over the last dimension D pass back, and dropout of it, in one
// launch; those of the parameters are in norm_bwd.cu.
#include "kernels/cuda/dropout_vector.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

template <class T, class Acc = Accumulator<T>>
struct NormBwdInput {
  const T* dy;
  const T* x;
  const T* weight;
  const Acc* mean;  // null for RMSNorm
  const Acc* rstd;
  const T* dresidual;  // null where there is none
  T* dx;               // may be dy or dresidual; null where only its dropout is needed
  T* dropped;          // likewise; null where there is no dropout
  int64_t rows;
  int cols;
  Dropout dropout;
};

/// What a thread reads of a place in a row.
template <class T, int kWidth>
struct Operands {
  Packed<T, kWidth> dy, x, weight, dresidual;
};

template <bool kCentred, class T, int kWidth, int kGroup, bool kShort>
__global__ void __launch_bounds__(kThreads) norm_bwd_input_kernel(const NormBwdInput<T> norm) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kGroup>();
  if (row >= norm.rows) return;
  const int64_t start = row * norm.cols;
  const auto held = hold_places<kGroup, kShort>(norm.cols / kWidth, [&norm, start](int64_t i) {
    Operands<T, kWidth> operands = {};
    operands.dy = load_packed<kWidth>(norm.dy + start, i);
    operands.x = load_packed<kWidth>(norm.x + start, i);
    operands.weight = load_packed<kWidth>(norm.weight, i);
    if (norm.dresidual) operands.dresidual = load_packed<kWidth>(norm.dresidual + start, i);
    return operands;
  });
  const Acc mean = kCentred ? norm.mean[row] : Acc{0}, rstd = norm.rstd[row];
  // Of the first place, while the operands are on their way.
  const int64_t first = group_lane<kGroup>();
  const uint32_t first_kept = norm.dropped ? kept_elements<kWidth>(norm.dropout, start + first * kWidth) : 0;
  const auto cols = static_cast<Acc>(norm.cols);

  /// The gradient of the normalised x, and that itself.
  const auto unpack_place = [mean, rstd](const Operands<T, kWidth>& operands, Acc(&d)[kWidth],
                                         Acc(&n)[kWidth]) {
    Acc w[kWidth];
    unpack(operands.dy, d);
    unpack(operands.x, n);
    unpack(operands.weight, w);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      d[j] *= w[j];
      n[j] = (n[j] - mean) * rstd;
    }
  };
  Acc sum = 0, dot = 0;
  held.for_each([&](int64_t, const Operands<T, kWidth>& operands) {
    Acc d[kWidth], n[kWidth];
    unpack_place(operands, d, n);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if constexpr (kCentred) sum += d[j];
      dot += d[j] * n[j];
    }
  });
  const Acc along = group_reduce<kGroup>(dot) / cols;
  const Acc constant = kCentred ? group_reduce<kGroup>(sum) / cols : Acc{0};
  held.for_each([&](int64_t i, const Operands<T, kWidth>& operands) {
    Acc d[kWidth], n[kWidth], dx[kWidth];
    unpack_place(operands, d, n);
    unpack(operands.dresidual, dx);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) dx[j] += rstd * (d[j] - constant - n[j] * along);
    const Packed<T, kWidth> stored = pack<T>(dx);
    if (norm.dx) store(norm.dx + start, i, stored);
    if (!norm.dropped) return;
    unpack(stored, dx);
    drop(norm.dropout, i == first ? first_kept : kept_elements<kWidth>(norm.dropout, start + i * kWidth), dx);
    store(norm.dropped + start, i, pack<T>(dx));
  });
}

}  // namespace

cudaError_t norm_bwd_input(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &weight = call.inputs[2];
  const TensorView &mean = call.inputs[3], &dresidual = call.inputs[5];
  const TensorView &dx = call.outputs[0], &dropped = call.outputs[1];
  const auto& attrs = call.attrs<fb::FusedNormT>();
  const Dropout dropout(call.inputs[6].as<const TrainState>(), attrs.dropout_stream, attrs.dropout_p);
  return with_type(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const NormBwdInput<T> norm = {.dy = dy.as<const T>(),
                                  .x = x.as<const T>(),
                                  .weight = weight.as<const T>(),
                                  .mean = mean.as<const Acc>(),
                                  .rstd = call.inputs[4].as<const Acc>(),
                                  .dresidual = dresidual.as<const T>(),
                                  .dx = dx.as<T>(),
                                  .dropped = dropped.as<T>(),
                                  .rows = x.rows(),
                                  .cols = static_cast<int>(x.cols()),
                                  .dropout = dropout};
    return with_short_row_layout<T>(
        norm.cols, {&dy, &x, &weight, &dresidual, &dx, &dropped}, [&]<int kWidth, int kGroup, bool kShort>() {
          const auto kernel = mean.present() ? norm_bwd_input_kernel<true, T, kWidth, kGroup, kShort>
                                             : norm_bwd_input_kernel<false, T, kWidth, kGroup, kShort>;
          return launch(context, kernel, group_blocks<kGroup>(norm.rows), kThreads, norm);
        });
  });
}

}  // namespace moec::cuda
