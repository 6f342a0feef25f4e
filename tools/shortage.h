// Why a model does not fit, and what would help.
#pragma once

#include <string>

#include "compiler/compile.h"

namespace moec::tools {

/// One line: the bytes short, the largest buffers that are live at the peak with the op that made each, and
/// the cheapest change that would fit. Compiles the model several times to find it.
std::string shortage_text(const fb::ModelT& model, const CompileOptions& options, const Shortage& shortage);

}  // namespace moec::tools
