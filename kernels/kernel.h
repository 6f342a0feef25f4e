// What every kernel is called with, on every device. One instruction of a plan is one KernelCall.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "ops_generated.h"

namespace moec {

/// Bytes of one element.
constexpr int64_t dtype_size(fb::DType dtype) {
  switch (dtype) {
    case fb::DType::F64:
      return 8;
    case fb::DType::F32:
    case fb::DType::I32:
      return 4;
    case fb::DType::BF16:
    case fb::DType::F16:
    case fb::DType::U16:
      return 2;
    case fb::DType::U8:
      return 1;
  }
  return 0;
}

/// A contiguous row-major tensor in device memory; does not own it. An absent optional operand is a
/// default-constructed view.
struct TensorView {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  fb::DType dtype = fb::DType::F32;
  int rank = -1;  // -1: absent; 0: a scalar
  std::array<int64_t, kMaxRank> shape{};

  bool present() const { return rank >= 0; }
  int64_t dim(int i) const { return shape[static_cast<size_t>(i < 0 ? rank + i : i)]; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[static_cast<size_t>(i)];
    return present() ? n : 0;
  }
  /// The last dimension, and the product of all dimensions before it.
  int64_t cols() const { return rank > 0 ? dim(-1) : 1; }
  int64_t rows() const { return cols() == 0 ? 0 : elements() / cols(); }
  int64_t bytes() const { return elements() * dtype_size(dtype); }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// Operands are in the order of the kernel's signature in catalog.def; absent optional ones are views with
/// present() == false. Kernels may assume what the op's shape inference guarantees.
struct KernelCall {
  std::vector<TensorView> inputs;
  std::vector<TensorView> outputs;
  TensorView workspace;  // at least the bytes the catalog asked for; contents undefined
  const fb::OpUnion* op = nullptr;

  /// The attributes, e.g. `call.attrs<fb::RmsNormT>()`; the kind is fixed by the kernel.
  template <class Attrs>
  const Attrs& attrs() const {
    return *static_cast<const Attrs*>(op->value);
  }
};

}  // namespace moec
