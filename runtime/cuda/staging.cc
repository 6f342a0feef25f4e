#include "runtime/cuda/staging.h"

#include <cstring>
#include <memory>

#include "runtime/cuda/cuda_check.h"

namespace moec::runtime {
namespace {

struct HostCopy {
  std::byte* to = nullptr;
  std::span<const std::byte> from;
};

/// Called by CUDA, in the order of the stream, on a thread of its own.
void run_host_copy(void* data) {
  const std::unique_ptr<const HostCopy> copy(static_cast<const HostCopy*>(data));
  std::memcpy(copy->to, copy->from.data(), copy->from.size());
}

}  // namespace

Status Staging::open() {
  cudaStream_t stream = nullptr;
  MOEC_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  for (CudaEvent* event : {&arrived_, &left_}) {
    cudaEvent_t handle = nullptr;
    MOEC_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming));
    event->reset(handle);
  }
  return {};
}

Status Staging::reserve(size_t bytes) {
  if (bytes <= capacity_) return {};
  MOEC_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  MOEC_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(left_.get()));
  void *stage = nullptr, *pinned = nullptr;
  MOEC_RETURN_IF_CUDA_ERROR(cudaMalloc(&stage, bytes));
  stage_.reset(static_cast<std::byte*>(stage));
  MOEC_RETURN_IF_CUDA_ERROR(cudaMallocHost(&pinned, bytes));
  pinned_.reset(static_cast<std::byte*>(pinned));
  capacity_ = bytes;
  return {};
}

Status Staging::stage(std::span<const std::byte> bytes) {
  MOEC_RETURN_IF_ERROR(reserve(bytes.size()));
  staged_ = bytes.size();
  MOEC_RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream_.get(), left_.get()));
  auto copy = std::make_unique<HostCopy>(HostCopy{pinned_.get(), bytes});
  MOEC_RETURN_IF_CUDA_ERROR(cudaLaunchHostFunc(stream_.get(), run_host_copy, copy.get()));
  static_cast<void>(copy.release());  // run_host_copy deletes it
  MOEC_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(stage_.get(), pinned_.get(), staged_, cudaMemcpyHostToDevice, stream_.get()));
  MOEC_RETURN_IF_CUDA_ERROR(cudaEventRecord(arrived_.get(), stream_.get()));
  return {};
}

Status Staging::copy_to(void* to, cudaStream_t stream) {
  MOEC_RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream, arrived_.get()));
  MOEC_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, stage_.get(), staged_, cudaMemcpyDeviceToDevice, stream));
  MOEC_RETURN_IF_CUDA_ERROR(cudaEventRecord(left_.get(), stream));
  return {};
}

}  // namespace moec::runtime
