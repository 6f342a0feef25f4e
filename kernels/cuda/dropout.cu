#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace moec::cuda {
namespace {

/// A thread masks a run.
template <class T>
__global__ void dropout_kernel(const T* x, T* y, int64_t n, bool aligned, Dropout dropout) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t i = global_thread(), first = i * kDropoutRun;
  if (first >= n) return;
  const bool whole = aligned && first + kDropoutRun <= n;
  Vector<T, kDropoutRun> v = {};
  if (whole) {
    v = load<kDropoutRun>(x, i);
  } else {
#pragma unroll
    for (int j = 0; j < kDropoutRun; ++j)
      if (first + j < n) v.value[j] = x[first + j];
  }
  Acc values[kDropoutRun];
#pragma unroll
  for (int j = 0; j < kDropoutRun; ++j) values[j] = static_cast<Acc>(v.value[j]);
  dropout.apply(dropout.kept(first), values);
#pragma unroll
  for (int j = 0; j < kDropoutRun; ++j) v.value[j] = to_storage<T>(values[j]);
  if (whole) {
    store(y, i, v);
  } else {
#pragma unroll
    for (int j = 0; j < kDropoutRun; ++j)
      if (first + j < n) y[first + j] = v.value[j];
  }
}

}  // namespace

/// Its own backward: the same elements are kept and scaled.
cudaError_t dropout(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  const fb::DropoutT& attrs = call.attrs<fb::DropoutT>();
  const Dropout dropout(call.inputs[1].as<const TrainState>(), attrs.stream, attrs.p);
  return with_type(x.dtype, [&]<class T>() {
    return launch(context, dropout_kernel<T>, ceil_div(ceil_div(x.elements(), kDropoutRun), kThreads),
                  kThreads, x.as<const T>(), y.as<T>(), x.elements(),
                  whole_vectors(kDropoutRun, kDropoutRun, {&x, &y}), dropout);
  });
}

}  // namespace moec::cuda
