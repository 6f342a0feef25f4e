// The CUDA device.
#pragma once

#include <memory>
#include <string>

#include "runtime/device.h"
#include "runtime/status.h"

namespace moec::runtime {

/// How the CUDA device submits programs. All three give the same bits.
enum class Execution {
  kEager,      // instruction by instruction; after a fault the last completed one is known
  kSegmented,  // one CUDA graph per program
  kWhole,      // one CUDA graph per sequence of programs, such as a training step
};

/// What the CUDA runtime says of this machine. Versions are 1000 * major + 10 * minor; 0 is none.
struct CudaMachine {
  int driver_version = 0;
  int runtime_version = 0;
  int devices = 0;
};

/// Whether kernels can run there: no driver, an older driver than this build needs, and no GPU are one line
/// each.
Status check_cuda_machine(const CudaMachine& machine);

/// Whether make_cuda_device has a chance here. Where it has none, the error says why.
Status cuda_available();

/// A device on the current GPU. Programs are first run instruction by instruction, and captured into a graph
/// when they are run again. A build without CUDA gives an error.
Result<std::unique_ptr<Device>> make_cuda_device(Execution execution = Execution::kWhole);

}  // namespace moec::runtime
