// Reads that nobody waits for.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "runtime/cuda/cuda_handles.h"
#include "runtime/device.h"

namespace moec::runtime {

/// The status of a CUDA call, as the device that owns the reads reports it.
using CheckCall = std::function<Status(cudaError_t error, std::string_view call)>;

/// Copies device memory to pinned memory on a stream of its own, behind an event of the stream of the runs:
/// the runs go on beside the copy, and the events tell the time between two reads.
class LateReads {
 public:
  struct Slot {
    std::byte* bytes = nullptr;  // Device::kMostLateBytes
    CudaEvent reached;           // by the runs
    CudaEvent copied;
  };

  Status open(CheckCall check);
  Result<std::unique_ptr<LateRead>> read(const void* from, size_t bytes, cudaStream_t runs);

  cudaError_t wait() { return cudaStreamSynchronize(stream_.get()); }

 private:
  CheckCall check_;
  PinnedMemory<std::byte> bytes_;
  std::vector<std::shared_ptr<Slot>> slots_;  // used in turns
  size_t next_ = 0;
  std::shared_ptr<Slot> last_;  // of the last read
  CudaStream stream_;
};

}  // namespace moec::runtime
