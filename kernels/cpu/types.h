// Element types of the CPU kernels: how they are stored, and the type they are computed in.
#pragma once

#include <stdexcept>
#include <type_traits>

#include "kernels/float16.h"
#include "kernels/kernel.h"

namespace moec::cpu {

/// The type arithmetic on T is done in, and the type of statistics, losses and router values.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Calls body.template operator()<T>() with the storage type of `dtype`.
template <class Body>
void dispatch(fb::DType dtype, Body&& body) {
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
      throw std::logic_error("CPU kernels store f32, f64, bf16 and f16");
  }
}

/// The same for statistics, losses and router values, which are stored in an accumulation type: f32 or f64.
template <class Body>
void dispatch_accumulator(fb::DType dtype, Body&& body) {
  if (dtype == fb::DType::F64) return body.template operator()<double>();
  if (dtype == fb::DType::F32) return body.template operator()<float>();
  throw std::logic_error("statistics, losses and router values are f32 or f64");
}

}  // namespace moec::cpu
