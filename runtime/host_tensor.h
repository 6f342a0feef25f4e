// A tensor in host memory, on its way between a device and a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace moec::runtime {

struct TensorInfo {
  std::string name;
  fb::DType dtype = fb::DType::F32;
  std::vector<uint64_t> shape;

  bool operator==(const TensorInfo&) const = default;
};

/// Contiguous and row-major; `data` holds exactly the elements of `info`.
struct HostTensor {
  TensorInfo info;
  std::vector<std::byte> data;

  /// The elements; T must be the type of info.dtype.
  template <class T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(data.data()), data.size() / sizeof(T)};
  }
  template <class T>
  std::span<T> as() {
    return {reinterpret_cast<T*>(data.data()), data.size() / sizeof(T)};
  }
};

}  // namespace moec::runtime
