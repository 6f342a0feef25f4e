// How far the device has come: what is known after a fault.
#pragma once

#include <cstdint>

#include "runtime/cuda/cuda_handles.h"
#include "runtime/status.h"

namespace moec::runtime {

/// The number of the last instruction that the device is known to have completed. Numbers run through all
/// programs and start at 1; 0 is none. The host can read it after a fault, when it can read nothing else.
class Progress {
 public:
  Status create(uint32_t instructions);

  /// Enqueues the note that instruction `number` is done; in a capture, as a node of the graph.
  cudaError_t mark(uint32_t number, cudaStream_t stream);

  uint32_t last() const { return last_ == nullptr ? 0 : *static_cast<const volatile uint32_t*>(last_.get()); }

 private:
  DeviceMemory<uint32_t> numbers_;  // 0, 1, 2, ...: what marks copy
  PinnedMemory<uint32_t> last_;
};

}  // namespace moec::runtime
