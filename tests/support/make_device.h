// Tests that run on any device take a maker of devices.
#pragma once

#include <functional>
#include <memory>

#include "runtime/device.h"

namespace moec::test {

/// Makes a device that holds no plan yet.
using MakeDevice = std::function<std::unique_ptr<runtime::Device>()>;

}  // namespace moec::test
