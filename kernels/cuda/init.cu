#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/random.h"
#include "kernels/train_state.h"

namespace moec::cuda {
namespace {

/// A thread makes the elements of one block of the generator.
template <class T>
__global__ void init_normal_kernel(const TrainState* state, T* y, int64_t n, uint32_t stream, double mean,
                                   double std) {
  begin_kernel();
  const int64_t i = global_thread();
  if (4 * i >= n) return;
  const NormalBlock normals = initial_normals(state->seed, stream, static_cast<uint64_t>(i));
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (4 * i + j < n) y[4 * i + j] = to_storage<T>(mean + std * normals.value[j]);
}

template <class T, int kWidth>
__global__ void fill_kernel(T* y, int64_t vectors, T value) {
  begin_kernel();
  const int64_t i = global_thread();
  if (i >= vectors) return;
  Vector<T, kWidth> out;
#pragma unroll
  for (T& element : out.value) element = value;
  store(y, i, out);
}

template <class T>
cudaError_t fill_as(const CudaContext& context, const TensorView& y, T value) {
  return with_width<T>(y.elements(), {&y}, [&]<int kWidth>() {
    const int64_t vectors = y.elements() / kWidth;
    return launch(context, fill_kernel<T, kWidth>, ceil_div(vectors, kThreads), kThreads, y.as<T>(), vectors,
                  value);
  });
}

}  // namespace

cudaError_t init_normal(const KernelCall& call, const CudaContext& context) {
  const TensorView& y = call.outputs[0];
  const fb::InitNormalT& init = call.attrs<fb::InitNormalT>();
  return with_type(y.dtype, [&]<class T>() {
    return launch(context, init_normal_kernel<T>, ceil_div(ceil_div(y.elements(), 4), kThreads), kThreads,
                  call.inputs[0].as<const TrainState>(), y.as<T>(), y.elements(), init.stream,
                  static_cast<double>(init.mean), static_cast<double>(init.std));
  });
}

cudaError_t fill(const KernelCall& call, const CudaContext& context) {
  const TensorView& y = call.outputs[0];
  const double value = call.attrs<fb::FillT>().value;
  switch (y.dtype) {
    case fb::DType::I32:
      return fill_as(context, y, static_cast<int32_t>(value));
    case fb::DType::U16:
      return fill_as(context, y, static_cast<uint16_t>(value));
    case fb::DType::U8:
      return fill_as(context, y, static_cast<uint8_t>(value));
    default:
      return with_type(y.dtype, [&]<class T>() {
        return fill_as(context, y, static_cast<T>(static_cast<Accumulator<T>>(value)));
      });
  }
}

}  // namespace moec::cuda
