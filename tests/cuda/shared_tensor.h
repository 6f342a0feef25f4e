// Tensors for tests that call kernels themselves.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/kernel.h"

namespace moec::test {

/// A tensor in memory that host and device see; fresh contents are 0xff bytes, which are NaN.
class SharedTensor {
 public:
  SharedTensor(fb::DType dtype, const std::vector<int64_t>& shape) {
    view_.dtype = dtype;
    view_.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), view_.shape.begin());
    void* data = nullptr;
    REQUIRE(cudaMallocManaged(&data, static_cast<size_t>(view_.bytes())) == cudaSuccess);
    std::memset(data, 0xff, static_cast<size_t>(view_.bytes()));
    memory_.reset(data);
    view_.data = data;
  }

  operator const TensorView&() const { return view_; }  // NOLINT: a tensor is passed where a view is wanted
  const TensorView& view() const { return view_; }
  int64_t elements() const { return view_.elements(); }

  double get(int64_t i) const {
    if (view_.dtype == fb::DType::BF16) return static_cast<double>(float{view_.as<__nv_bfloat16>()[i]});
    if (view_.dtype == fb::DType::F64) return view_.as<double>()[i];
    return view_.dtype == fb::DType::F32 ? static_cast<double>(view_.as<float>()[i]) : view_.as<int32_t>()[i];
  }
  double get(int64_t row, int64_t col) const { return get(row * view_.cols() + col); }
  void set(int64_t i, double value) {
    if (view_.dtype == fb::DType::BF16)
      view_.as<__nv_bfloat16>()[i] = __nv_bfloat16(static_cast<float>(value));
    else if (view_.dtype == fb::DType::F32)
      view_.as<float>()[i] = static_cast<float>(value);
    else
      view_.as<int32_t>()[i] = static_cast<int32_t>(value);
  }
  void fill(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < elements(); ++i) set(i, static_cast<double>(normal(random)));
  }
  std::vector<double> values() const {
    std::vector<double> all;
    for (int64_t i = 0; i < elements(); ++i) all.push_back(get(i));
    return all;
  }

 private:
  struct Free {
    void operator()(void* data) const { cudaFree(data); }
  };
  TensorView view_;
  std::unique_ptr<void, Free> memory_;
};

}  // namespace moec::test
