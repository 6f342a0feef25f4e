#include "tools/devices.h"

#include "kernels/cpu/cpu_kernels.h"
#include "runtime/cuda/cuda_device.h"

namespace moec::tools {
namespace {

runtime::Execution execution_of(const std::string& word) {
  if (word == "eager") return runtime::Execution::kEager;
  return word == "segmented" ? runtime::Execution::kSegmented : runtime::Execution::kWhole;
}

}  // namespace

void add_device_flags(CLI::App& app, DeviceFlags& flags) {
  app.add_option("--device", flags.device, "Where to run (default: auto, the GPU where there is one)")
      ->check(one_of({"auto", "cpu", "cuda"}))
      ->type_name("auto|cpu|cuda");
  app.add_option("--execution", flags.execution,
                 "How the GPU is given its work: by instruction, by program, or by step (default: whole)")
      ->check(one_of({"eager", "segmented", "whole"}))
      ->type_name("eager|segmented|whole");
  app.add_option("--threads", flags.threads, "CPU threads (default: all cores); results do not depend on it")
      ->check(number<int>(1, 4096))
      ->type_name("N");
}

bool picks_cuda(const DeviceFlags& flags) {
  return flags.device == "cuda" || (flags.device == "auto" && runtime::cuda_available().ok());
}

Result<std::unique_ptr<runtime::Device>> make_device(const DeviceFlags& flags) {
  cpu::set_threads(flags.threads);
  if (picks_cuda(flags)) return runtime::make_cuda_device(execution_of(flags.execution));
  if (!flags.execution.empty())
    return input_error("--execution: the CPU has one way alone, this is for --device cuda");
  return runtime::make_cpu_device();
}

}  // namespace moec::tools
