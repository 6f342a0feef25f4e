// Why a model does not fit, and what would help.
#pragma once

#include <string>

#include "compiler/compile.h"
#include "runtime/status.h"

namespace moec::tools {

/// One line about the model at `path`: the bytes short, the largest buffers that are live at the peak with
/// the op that made each, and the cheapest change that would fit. Compiles the model several times to find
/// it.
Error shortage_failure(const std::string& path, const fb::ModelT& model, const CompileOptions& options,
                       const Shortage& shortage);

}  // namespace moec::tools
