// Losses and other single numbers in device memory, stored as f32 or f64.
#pragma once

#include "kernels/kernel.h"

namespace moec::cuda {

struct Scalar {
  void* data = nullptr;
  bool is_double = false;

  Scalar() = default;
  explicit Scalar(const TensorView& view) : data(view.data), is_double(view.dtype == fb::DType::F64) {}

  __device__ double read() const {
    return is_double ? *static_cast<const double*>(data)
                     : static_cast<double>(*static_cast<const float*>(data));
  }
  __device__ void write(double value) const {
    if (is_double)
      *static_cast<double*>(data) = value;
    else
      *static_cast<float*>(data) = static_cast<float>(value);
  }
};

}  // namespace moec::cuda
