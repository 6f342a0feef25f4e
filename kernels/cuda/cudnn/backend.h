// cuDNN's backend interface: the few functions that we call, of a library that is opened when it is first
// needed, and descriptors, of which graphs, plans and everything in them are made.
#pragma once

#include <cudnn_graph.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace moec::cuda::cudnn {

/// Functions by their own names.
struct Library {
  decltype(&::cudnnGetVersion) cudnnGetVersion = nullptr;
  decltype(&::cudnnCreate) cudnnCreate = nullptr;
  decltype(&::cudnnDestroy) cudnnDestroy = nullptr;
  decltype(&::cudnnSetStream) cudnnSetStream = nullptr;
  decltype(&::cudnnBackendCreateDescriptor) cudnnBackendCreateDescriptor = nullptr;
  decltype(&::cudnnBackendDestroyDescriptor) cudnnBackendDestroyDescriptor = nullptr;
  decltype(&::cudnnBackendSetAttribute) cudnnBackendSetAttribute = nullptr;
  decltype(&::cudnnBackendGetAttribute) cudnnBackendGetAttribute = nullptr;
  decltype(&::cudnnBackendFinalize) cudnnBackendFinalize = nullptr;
  decltype(&::cudnnBackendExecute) cudnnBackendExecute = nullptr;

  /// False where the machine lacks the library, or it lacks a function. It stays open until the process ends.
  bool load();
};

/// How the backend calls the type of an attribute.
template <class T>
constexpr cudnnBackendAttributeType_t kAttributeType = cudnnBackendAttributeType_t{};
template <>
inline constexpr auto kAttributeType<bool> = CUDNN_TYPE_BOOLEAN;
template <>
inline constexpr auto kAttributeType<int64_t> = CUDNN_TYPE_INT64;
template <>
inline constexpr auto kAttributeType<void*> = CUDNN_TYPE_VOID_PTR;
template <>
inline constexpr auto kAttributeType<cudnnHandle_t> = CUDNN_TYPE_HANDLE;
template <>
inline constexpr auto kAttributeType<cudnnDataType_t> = CUDNN_TYPE_DATA_TYPE;
template <>
inline constexpr auto kAttributeType<cudnnPointwiseMode_t> = CUDNN_TYPE_POINTWISE_MODE;
template <>
inline constexpr auto kAttributeType<cudnnReduceTensorOp_t> = CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
template <>
inline constexpr auto kAttributeType<cudnnBackendHeurMode_t> = CUDNN_TYPE_HEUR_MODE;
template <>
inline constexpr auto kAttributeType<cudnnBackendNumericalNote_t> = CUDNN_TYPE_NUMERICAL_NOTE;

/// A descriptor, whose attributes are set before it is finalized. The first call that fails gives the status;
/// those after it do nothing.
class Descriptor {
 public:
  Descriptor(const Library& library, cudnnBackendDescriptorType_t type)
      : library_(&library), data_(nullptr, library.cudnnBackendDestroyDescriptor) {
    cudnnBackendDescriptor_t data = nullptr;
    status_ = library.cudnnBackendCreateDescriptor(type, &data);
    data_.reset(data);
  }

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, std::span<const T> values) {
    return set(name, kAttributeType<T>, static_cast<int64_t>(values.size()), values.data());
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, const T& value) {
    return set(name, std::span<const T>(&value, 1));
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    const cudnnBackendDescriptor_t data = value.data_.get();
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &data);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, std::span<const Descriptor> values) {
    const std::vector<cudnnBackendDescriptor_t> data = handles(values);
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(data.size()), data.data());
  }

  Descriptor& finalize() {
    if (ok()) status_ = library_->cudnnBackendFinalize(data_.get());
    return *this;
  }

  /// Copies up to as many values as `to` holds, and returns how many there are; 0 where there are none.
  template <class T>
  int64_t get(cudnnBackendAttributeName_t name, std::span<T> to) const {
    return get(name, kAttributeType<T>, static_cast<int64_t>(to.size()), to.data());
  }
  int64_t get(cudnnBackendAttributeName_t name, std::span<Descriptor> to) const {
    std::vector<cudnnBackendDescriptor_t> data = handles(to);
    return get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(data.size()), data.data());
  }

  cudnnStatus_t status() const { return status_; }
  bool ok() const { return status_ == CUDNN_STATUS_SUCCESS; }
  cudnnBackendDescriptor_t handle() const { return data_.get(); }

 private:
  static std::vector<cudnnBackendDescriptor_t> handles(std::span<const Descriptor> descriptors) {
    std::vector<cudnnBackendDescriptor_t> data;
    for (const Descriptor& descriptor : descriptors) data.push_back(descriptor.data_.get());
    return data;
  }
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                  const void* values) {
    if (ok()) status_ = library_->cudnnBackendSetAttribute(data_.get(), name, type, count, values);
    return *this;
  }
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most,
              void* to) const {
    int64_t count = 0;
    const bool got =
        ok() && library_->cudnnBackendGetAttribute(data_.get(), name, type, most, &count,
                                                   most == 0 ? nullptr : to) == CUDNN_STATUS_SUCCESS;
    return got ? count : 0;
  }

  const Library* library_;
  std::unique_ptr<void, decltype(&::cudnnBackendDestroyDescriptor)> data_;
  cudnnStatus_t status_;
};

}  // namespace moec::cuda::cudnn
