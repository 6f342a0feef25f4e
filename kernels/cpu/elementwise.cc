// Elementwise ops and their derivatives. Every output element depends on input elements of its own place, or
// of its own pair, which are read before it is written: all of them work in place.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"
#include "kernels/cpu/vector_math.h"

namespace moec::cpu {
namespace {

/// y = f(x), computed in the accumulation type.
template <class F>
void map(const TensorView& x, const TensorView& y, F f) {
  dispatch(x.dtype, [&]<class T>() {
    const T* in = x.as<const T>();
    T* out = y.as<T>();
    parallel_ranges(x.elements(), kPieceElements, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<T>(f(static_cast<Accumulator<T>>(in[i])));
    });
  });
}

/// y = f(a, b).
template <class F>
void map(const TensorView& a, const TensorView& b, const TensorView& y, F f) {
  dispatch(a.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const T* in_a = a.as<const T>();
    const T* in_b = b.as<const T>();
    T* out = y.as<T>();
    parallel_ranges(a.elements(), kPieceElements, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i)
        out[i] = static_cast<T>(f(static_cast<Acc>(in_a[i]), static_cast<Acc>(in_b[i])));
    });
  });
}

template <class Acc>
Acc silu_derivative(Acc x) {
  const Acc s = sigmoid_fast(x);
  return s * (1 + x * (1 - s));
}

/// The tanh form, 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), is x * sigmoid(2u).
template <class Acc>
Acc gelu_tanh_argument(Acc x) {
  return static_cast<Acc>(1.5957691216057308) * x * (1 + static_cast<Acc>(0.044715) * x * x);
}

template <class Acc>
Acc gelu_tanh_derivative(Acc x) {
  const Acc s = sigmoid_fast(gelu_tanh_argument(x));
  const Acc du = static_cast<Acc>(1.5957691216057308) * (1 + static_cast<Acc>(3 * 0.044715) * x * x);
  return s + x * s * (1 - s) * du;
}

}  // namespace

void silu(const KernelCall& call) {
  map(call.inputs[0], call.outputs[0], [](auto x) { return x * sigmoid_fast(x); });
}

void silu_bwd(const KernelCall& call) {
  map(call.inputs[0], call.inputs[1], call.outputs[0],
      [](auto dy, auto x) { return dy * silu_derivative(x); });
}

void gelu(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  if (call.attrs<fb::GeluT>().tanh) {
    map(x, y, [](auto v) { return v * sigmoid_fast(gelu_tanh_argument(v)); });
  } else {
    map(x, y, [](auto v) { return v * normal_cdf_fast(v); });
  }
}

void gelu_bwd(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &dx = call.outputs[0];
  if (call.attrs<fb::GeluT>().tanh) {
    map(dy, x, dx, [](auto g, auto v) { return g * gelu_tanh_derivative(v); });
  } else {
    map(dy, x, dx, [](auto g, auto v) { return g * (normal_cdf_fast(v) + v * normal_pdf_fast(v)); });
  }
}

void swiglu(const KernelCall& call) {
  dispatch(call.inputs[0].dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const T* x = call.inputs[0].as<const T>();
    T* y = call.outputs[0].as<T>();
    parallel_ranges(call.outputs[0].elements(), kPieceElements, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        const Acc gate = x[2 * i], up = x[2 * i + 1];
        y[i] = static_cast<T>(gate * sigmoid_fast(gate) * up);
      }
    });
  });
}

void swiglu_bwd(const KernelCall& call) {
  dispatch(call.inputs[0].dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const T* dy = call.inputs[0].as<const T>();
    const T* x = call.inputs[1].as<const T>();
    T* dx = call.outputs[0].as<T>();
    T* y = call.outputs[1].as<T>();
    parallel_ranges(call.inputs[0].elements(), kPieceElements, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        const Acc gate = x[2 * i], up = x[2 * i + 1], g = dy[i];
        const Acc s = sigmoid_fast(gate);
        if (y) y[i] = static_cast<T>(gate * s * up);
        dx[2 * i] = static_cast<T>(g * up * s * (1 + gate * (1 - s)));
        dx[2 * i + 1] = static_cast<T>(g * gate * s);
      }
    });
  });
}

void add(const KernelCall& call) {
  map(call.inputs[0], call.inputs[1], call.outputs[0], [](auto a, auto b) { return a + b; });
}

void mul(const KernelCall& call) {
  map(call.inputs[0], call.inputs[1], call.outputs[0], [](auto a, auto b) { return a * b; });
}

void scale(const KernelCall& call) {
  const float factor = call.attrs<fb::ScaleT>().factor;
  map(call.inputs[0], call.outputs[0], [factor](auto x) { return x * factor; });
}

}  // namespace moec::cpu
