// Softmax over the last dimension. A row is read twice, the second time from the cache.
#include "kernels/cuda/softmax_stats.cuh"

namespace moec::cuda {
namespace {

/// y may be x.
template <class T, int kWidth, int kGroup>
__global__ void softmax_kernel(const T* x, T* y, int64_t rows, int cols) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kGroup>();
  if (row >= rows) return;
  x += row * cols;
  y += row * cols;
  const int vectors = cols / kWidth;
  const SoftmaxStats<Acc> stats = softmax_stats<kWidth, kGroup>(x, vectors);
  const Acc factor = 1 / stats.sum;
  for (int i = group_lane<kGroup>(); i < vectors; i += kGroup) {
    auto v = load<kWidth>(x, i);
#pragma unroll
    for (T& value : v.value)
      value = to_storage<T>(exponential<T>(static_cast<Acc>(value) - stats.max) * factor);
    store(y, i, v);
  }
}

/// dx = y * (dy - sum(dy * y)); dx may be dy.
template <class T, int kWidth, int kGroup>
__global__ void softmax_bwd_kernel(const T* dy, const T* y, T* dx, int64_t rows, int cols) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kGroup>();
  if (row >= rows) return;
  dy += row * cols;
  y += row * cols;
  dx += row * cols;
  const int vectors = cols / kWidth;
  Acc dot = 0;
  for (int i = group_lane<kGroup>(); i < vectors; i += kGroup) {
    const auto g = load<kWidth>(dy, i), p = load<kWidth>(y, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) dot += static_cast<Acc>(g.value[j]) * static_cast<Acc>(p.value[j]);
  }
  dot = group_reduce<kGroup>(dot);
  for (int i = group_lane<kGroup>(); i < vectors; i += kGroup) {
    auto g = load<kWidth>(dy, i);
    const auto p = load<kWidth>(y, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      g.value[j] = to_storage<T>(static_cast<Acc>(p.value[j]) * (static_cast<Acc>(g.value[j]) - dot));
    store(dx, i, g);
  }
}

}  // namespace

cudaError_t softmax(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  return with_type(x.dtype, [&]<class T>() {
    return with_row_layout<T>(x.cols(), {&x, &y}, [&]<int kWidth, int kGroup>() {
      return launch(context, softmax_kernel<T, kWidth, kGroup>, group_blocks<kGroup>(x.rows()), kThreads,
                    x.as<const T>(), y.as<T>(), x.rows(), static_cast<int>(x.cols()));
    });
  });
}

cudaError_t softmax_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &y = call.inputs[1], &dx = call.outputs[0];
  return with_type(y.dtype, [&]<class T>() {
    return with_row_layout<T>(y.cols(), {&dy, &y, &dx}, [&]<int kWidth, int kGroup>() {
      return launch(context, softmax_bwd_kernel<T, kWidth, kGroup>, group_blocks<kGroup>(y.rows()), kThreads,
                    dy.as<const T>(), y.as<const T>(), dx.as<T>(), y.rows(), static_cast<int>(y.cols()));
    });
  });
}

}  // namespace moec::cuda
