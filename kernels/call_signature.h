// Kernel calls told apart by their shapes.
#pragma once

#include <string>
#include <string_view>

#include "kernels/kernel.h"

namespace moec {

/// Kernel, first input, first output where it looks otherwise, and the optional inputs that are there:
/// "linear/f32[8,128,64]->f32[8,128,96]+bias". Calls with the same text take the same time.
std::string call_signature(std::string_view kernel, const KernelCall& call);

}  // namespace moec
