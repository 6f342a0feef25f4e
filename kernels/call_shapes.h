// Kernel calls told apart by their shapes.
#pragma once

#include <string>

#include "kernels/catalog.h"

namespace moec {

/// First input, first output where it looks otherwise, and the optional operands that are there:
/// "f32[8,128,64]->f32[8,128,96]+bias"; behind a star the elements of operands of any number,
/// "u8[160]*819018". Calls of a kernel with the same text take the same time.
std::string call_shapes(const KernelInfo& kernel, const KernelCall& call);

}  // namespace moec
