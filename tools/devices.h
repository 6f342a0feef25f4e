// The choice of a device on the command line.
#pragma once

#include <memory>
#include <string>

#include "runtime/device.h"
#include "runtime/status.h"
#include "tools/command_line.h"

namespace moec::tools {

struct DeviceFlags {
  std::string device = "auto";
  std::string execution;  // of a CUDA device, empty for whole
  int threads = 0;        // of the CPU device, 0 for all cores
};

/// Adds --device, --execution and --threads.
void add_device_flags(CLI::App& app, DeviceFlags& flags);

/// Whether make_device makes a CUDA device, or tries to.
bool picks_cuda(const DeviceFlags& flags);

/// A device by its name: cpu, cuda, or auto, which is cuda where a GPU can be used.
Result<std::unique_ptr<runtime::Device>> make_device(const DeviceFlags& flags);

}  // namespace moec::tools
