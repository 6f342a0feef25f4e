// The GPU tests' devices.
#pragma once

#include <memory>

#include "runtime/cuda/cuda_device.h"
#include "tests/support/make_device.h"
#include "tests/support/must.h"

namespace moec::test {

inline std::unique_ptr<runtime::Device> cuda_device(
    runtime::Execution execution = runtime::Execution::kWhole) {
  return must(runtime::make_cuda_device(execution));
}

}  // namespace moec::test
