// Elementwise ops and their derivatives. A thread reads the elements of one vector, or of one pair of
// vectors, before it writes their places: all of them work in place.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace moec::cuda {
namespace {

template <class T, int kWidth, class F>
__global__ void map_kernel(const T* x, T* y, int64_t vectors, F f) {
  begin_kernel();
  const int64_t i = global_thread();
  if (i >= vectors) return;
  auto v = load<kWidth>(x, i);
#pragma unroll
  for (T& value : v.value)
    value = to_storage<T>(f.template operator()<T>(static_cast<Accumulator<T>>(value)));
  store(y, i, v);
}

template <class T, int kWidth, class F>
__global__ void map_pair_kernel(const T* a, const T* b, T* y, int64_t vectors, F f) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t i = global_thread();
  if (i >= vectors) return;
  auto u = load<kWidth>(a, i);
  const auto v = load<kWidth>(b, i);
#pragma unroll
  for (int j = 0; j < kWidth; ++j)
    u.value[j] =
        to_storage<T>(f.template operator()<T>(static_cast<Acc>(u.value[j]), static_cast<Acc>(v.value[j])));
  store(y, i, u);
}

/// y = f(x), computed in the accumulation type.
template <class F>
cudaError_t map(const CudaContext& context, const TensorView& x, const TensorView& y, F f) {
  return with_type(x.dtype, [&]<class T>() {
    return with_width<T>(x.elements(), {&x, &y}, [&]<int kWidth>() {
      const int64_t vectors = x.elements() / kWidth;
      return launch(context, map_kernel<T, kWidth, F>, ceil_div(vectors, kThreads), kThreads, x.as<const T>(),
                    y.as<T>(), vectors, f);
    });
  });
}

/// y = f(a, b).
template <class F>
cudaError_t map(const CudaContext& context, const TensorView& a, const TensorView& b, const TensorView& y,
                F f) {
  return with_type(a.dtype, [&]<class T>() {
    return with_width<T>(a.elements(), {&a, &b, &y}, [&]<int kWidth>() {
      const int64_t vectors = a.elements() / kWidth;
      return launch(context, map_pair_kernel<T, kWidth, F>, ceil_div(vectors, kThreads), kThreads,
                    a.as<const T>(), b.as<const T>(), y.as<T>(), vectors, f);
    });
  });
}

struct Add {
  template <class T, class Acc>
  __device__ Acc operator()(Acc a, Acc b) const {
    return a + b;
  }
};

struct Mul {
  template <class T, class Acc>
  __device__ Acc operator()(Acc a, Acc b) const {
    return a * b;
  }
};

struct Scale {
  float factor;

  template <class T, class Acc>
  __device__ Acc operator()(Acc x) const {
    return x * factor;
  }
};

/// A thread turns two vectors of gates and ups into one of y.
template <class T, int kWidth>
__global__ void swiglu_kernel(const T* x, T* y, int64_t vectors) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t i = global_thread();
  if (i >= vectors) return;
  const Vector<T, kWidth> in[2] = {load<kWidth>(x, 2 * i), load<kWidth>(x, 2 * i + 1)};
  Vector<T, kWidth> out;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const auto gate = static_cast<Acc>(in[2 * j / kWidth].value[2 * j % kWidth]);
    const auto up = static_cast<Acc>(in[(2 * j + 1) / kWidth].value[(2 * j + 1) % kWidth]);
    out.value[j] = to_storage<T>(gate * sigmoid<T>(gate) * up);
  }
  store(y, i, out);
}

template <class T, int kWidth>
__global__ void swiglu_bwd_kernel(const T* dy, const T* x, T* dx, T* y, int64_t vectors) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t i = global_thread();
  if (i >= vectors) return;
  Vector<T, kWidth> pair[2] = {load<kWidth>(x, 2 * i), load<kWidth>(x, 2 * i + 1)};
  auto g = load<kWidth>(dy, i);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    T& at_gate = pair[2 * j / kWidth].value[2 * j % kWidth];
    T& at_up = pair[(2 * j + 1) / kWidth].value[(2 * j + 1) % kWidth];
    const auto gate = static_cast<Acc>(at_gate), up = static_cast<Acc>(at_up),
               d = static_cast<Acc>(g.value[j]);
    const Acc s = sigmoid<T>(gate);
    at_gate = to_storage<T>(d * up * s * (1 + gate * (1 - s)));
    at_up = to_storage<T>(d * gate * s);
    g.value[j] = to_storage<T>(gate * s * up);
  }
  if (y) store(y, i, g);
  store(dx, 2 * i, pair[0]);
  store(dx, 2 * i + 1, pair[1]);
}

}  // namespace

cudaError_t silu(const KernelCall& call, const CudaContext& context) {
  return map(context, call.inputs[0], call.outputs[0], Silu{});
}

cudaError_t silu_bwd(const KernelCall& call, const CudaContext& context) {
  return map(context, call.inputs[0], call.inputs[1], call.outputs[0], SiluBwd{});
}

cudaError_t gelu(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  return call.attrs<fb::GeluT>().tanh ? map(context, x, y, GeluTanh{}) : map(context, x, y, Gelu{});
}

cudaError_t gelu_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &dx = call.outputs[0];
  return call.attrs<fb::GeluT>().tanh ? map(context, dy, x, dx, GeluTanhBwd{})
                                      : map(context, dy, x, dx, GeluBwd{});
}

cudaError_t add(const KernelCall& call, const CudaContext& context) {
  return map(context, call.inputs[0], call.inputs[1], call.outputs[0], Add{});
}

cudaError_t mul(const KernelCall& call, const CudaContext& context) {
  return map(context, call.inputs[0], call.inputs[1], call.outputs[0], Mul{});
}

cudaError_t scale(const KernelCall& call, const CudaContext& context) {
  return map(context, call.inputs[0], call.outputs[0], Scale{call.attrs<fb::ScaleT>().factor});
}

cudaError_t swiglu(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  return with_type(x.dtype, [&]<class T>() {
    return with_width<T>(y.elements(), {&x, &y}, [&]<int kWidth>() {
      const int64_t vectors = y.elements() / kWidth;
      return launch(context, swiglu_kernel<T, kWidth>, ceil_div(vectors, kThreads), kThreads, x.as<const T>(),
                    y.as<T>(), vectors);
    });
  });
}

cudaError_t swiglu_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &dx = call.outputs[0], &y = call.outputs[1];
  return with_type(x.dtype, [&]<class T>() {
    return with_width<T>(dy.elements(), {&dy, &x, &dx, &y}, [&]<int kWidth>() {
      const int64_t vectors = dy.elements() / kWidth;
      return launch(context, swiglu_bwd_kernel<T, kWidth>, ceil_div(vectors, kThreads), kThreads,
                    dy.as<const T>(), x.as<const T>(), dx.as<T>(), y.as<T>(), vectors);
    });
  });
}

}  // namespace moec::cuda
