#include <fmt/format.h>

#include "runtime/cuda/cuda_device.h"

namespace moec::runtime {
namespace {

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

Status check_cuda_machine(const CudaMachine& machine) {
  if (machine.driver_version == 0)
    return input_error("no NVIDIA driver is installed, so there is no CUDA device");
  // Within a major version, newer runtimes run on older drivers.
  if (machine.driver_version / 1000 < machine.runtime_version / 1000)
    return input_error(
        fmt::format("the NVIDIA driver supports CUDA {}, this build needs CUDA {}: update the driver",
                    version_text(machine.driver_version), version_text(machine.runtime_version)));
  if (machine.devices == 0)
    return input_error("no GPU is visible to CUDA (see nvidia-smi and CUDA_VISIBLE_DEVICES)");
  return {};
}

}  // namespace moec::runtime
