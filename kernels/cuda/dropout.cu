#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/random.h"
#include "kernels/train_state.h"

namespace moec::cuda {
namespace {

/// Elements that one block of the generator decides about: the work of a thread.
constexpr int kElements = 4;

template <class T>
__global__ void dropout_kernel(const T* x, const TrainState* state, T* y, int64_t n, bool aligned,
                               uint32_t stream, uint64_t threshold, Accumulator<T> kept) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t i = global_thread(), begin = i * kElements;
  if (begin >= n) return;
  const RandomBlock random = dropout_block(state->seed, stream, state->micro_batch, static_cast<uint64_t>(i));
  const auto drop = [&](T value, int j) {
    return random.word[j] >= threshold ? to_storage<T>(static_cast<Acc>(value) * kept) : T(0.0f);
  };
  if (aligned && begin + kElements <= n) {
    auto v = load<kElements>(x, i);
#pragma unroll
    for (int j = 0; j < kElements; ++j) v.value[j] = drop(v.value[j], j);
    store(y, i, v);
  } else {
#pragma unroll
    for (int j = 0; j < kElements; ++j)
      if (begin + j < n) y[begin + j] = drop(x[begin + j], j);
  }
}

}  // namespace

/// Its own backward: the same elements are kept and scaled. A dropped element is 0 whatever it was.
cudaError_t dropout(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  const fb::DropoutT& attrs = call.attrs<fb::DropoutT>();
  return with_type(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const bool aligned = whole_vectors(kElements, kElements, {&x, &y});
    return launch(context, dropout_kernel<T>, ceil_div(ceil_div(x.elements(), kElements), kThreads), kThreads,
                  x.as<const T>(), call.inputs[1].as<const TrainState>(), y.as<T>(), x.elements(), aligned,
                  attrs.stream, dropout_threshold(attrs.p), 1 / (1 - static_cast<Acc>(attrs.p)));
  });
}

}  // namespace moec::cuda
