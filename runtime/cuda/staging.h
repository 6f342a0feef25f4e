// Data on its way to the device while the device runs.
#pragma once

#include <cstddef>
#include <span>

#include "runtime/cuda/cuda_handles.h"
#include "runtime/status.h"

namespace moec::runtime {

/// Two steps on a stream of its own: pageable host memory → pinned memory → a stage on the device. What is on
/// the stage is then copied to its place in the order of the runs. So the second of two chunks travels while
/// runs use the first, and the host waits for neither.
class Staging {
 public:
  Status open();

  /// Starts to bring `bytes` to the stage, as soon as what is there has been copied to its place. They must
  /// stay as they are until wait(). Grows to the largest span that it has seen, which waits.
  Status stage(std::span<const std::byte> bytes);

  /// Enqueues on `stream` a copy from the stage to `to`.
  Status copy_to(void* to, cudaStream_t stream);

  /// Waits until all bytes have left the host memory they came from.
  cudaError_t wait() { return cudaStreamSynchronize(stream_.get()); }

 private:
  Status reserve(size_t bytes);

  DeviceMemory<std::byte> stage_;
  PinnedMemory<std::byte> pinned_;
  size_t capacity_ = 0;
  size_t staged_ = 0;  // bytes
  CudaEvent arrived_;  // on the stage
  CudaEvent left_;     // for their place
  CudaStream stream_;  // the last member, so that it is destroyed first
};

}  // namespace moec::runtime
