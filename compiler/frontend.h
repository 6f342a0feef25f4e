// Reads model specs.
#pragma once

#include <string>

#include "model_generated.h"

namespace moec {

/// Parses a spec in FlatBuffers JSON; `name` is the file's, for messages. Throws CompileError with line and
/// column of the fault.
fb::ModelT parse_model(const std::string& json, const std::string& name);

/// Reads and parses a spec file. Throws CompileError when it cannot be read, too.
fb::ModelT read_model(const std::string& path);

}  // namespace moec
