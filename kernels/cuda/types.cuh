// Element types of the CUDA kernels: how they are stored, and the type they are computed in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/kernel.h"

namespace moec::cuda {

/// Storage only; arithmetic is in float. Conversion rounds to nearest even.
using bf16 = __nv_bfloat16;
using f16 = __half;

/// The type arithmetic on T is done in, and the type of statistics, losses and router values.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// A value of any arithmetic type, rounded to storage type T.
template <class T, class Value>
__device__ inline T to_storage(Value value) {
  return static_cast<T>(static_cast<Accumulator<T>>(value));
}

/// Returns body.template operator()<T>() for the storage type of `dtype`.
template <class Body>
cudaError_t with_type(fb::DType dtype, Body&& body) {
  switch (dtype) {
    case fb::DType::F32:
      return body.template operator()<float>();
    case fb::DType::F64:
      return body.template operator()<double>();
    case fb::DType::BF16:
      return body.template operator()<bf16>();
    case fb::DType::F16:
      return body.template operator()<f16>();
    default:
      return cudaErrorNotSupported;
  }
}

/// The same for statistics, losses and router values, which are stored in an accumulation type: f32 or f64.
template <class Body>
cudaError_t with_accumulator_type(fb::DType dtype, Body&& body) {
  if (dtype == fb::DType::F32) return body.template operator()<float>();
  if (dtype == fb::DType::F64) return body.template operator()<double>();
  return cudaErrorNotSupported;
}

/// The same for gradients of parameters in a model of type T, which are stored as T or as its accumulator.
template <class T, class Body>
cudaError_t with_gradient_type(fb::DType dtype, Body&& body) {
  return with_type(dtype, [&]<class Grad>() -> cudaError_t {
    if constexpr (std::is_same_v<Grad, T> || std::is_same_v<Grad, Accumulator<T>>)
      return body.template operator()<Grad>();
    else
      return cudaErrorNotSupported;
  });
}

}  // namespace moec::cuda
