// Measured times of kernels, for the compiler's cost model.
#pragma once

#include <map>
#include <string>

#include "runtime/status.h"

namespace moec::tools {

/// Seconds by "kernel/shapes" (kernels/call_shapes.h): the medians of the kernel rows in what
/// `moebench --benchmark_format=json` wrote. An input error names the file.
Result<std::map<std::string, double>> read_measured_times(const std::string& path);

}  // namespace moec::tools
