// Activations and their derivatives, of one element, computed in the accumulation type for storage type T.
#pragma once

#include "kernels/cuda/math.cuh"

namespace moec::cuda {

struct Silu {
  template <class T, class Acc>
  __device__ Acc operator()(Acc x) const {
    return x * sigmoid<T>(x);
  }
};

struct SiluBwd {
  template <class T, class Acc>
  __device__ Acc operator()(Acc dy, Acc x) const {
    const Acc s = sigmoid<T>(x);
    return dy * s * (1 + x * (1 - s));
  }
};

struct Gelu {
  template <class T, class Acc>
  __device__ Acc operator()(Acc x) const {
    return x * normal_cdf<T>(x);
  }
};

struct GeluBwd {
  template <class T, class Acc>
  __device__ Acc operator()(Acc dy, Acc x) const {
    const Acc density = static_cast<Acc>(0.3989422804014327) * exponential<T>(static_cast<Acc>(-0.5) * x * x);
    return dy * (normal_cdf<T>(x) + x * density);
  }
};

/// The tanh form, 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), is x * sigmoid(2u).
template <class Acc>
__device__ Acc gelu_tanh_argument(Acc x) {
  return static_cast<Acc>(1.5957691216057308) * x * (1 + static_cast<Acc>(0.044715) * x * x);
}

struct GeluTanh {
  template <class T, class Acc>
  __device__ Acc operator()(Acc x) const {
    return x * sigmoid<T>(gelu_tanh_argument(x));
  }
};

struct GeluTanhBwd {
  template <class T, class Acc>
  __device__ Acc operator()(Acc dy, Acc x) const {
    const Acc s = sigmoid<T>(gelu_tanh_argument(x));
    const Acc du = static_cast<Acc>(1.5957691216057308) * (1 + static_cast<Acc>(3 * 0.044715) * x * x);
    return dy * (s + x * s * (1 - s) * du);
  }
};

}  // namespace moec::cuda
