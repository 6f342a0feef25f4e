// moec place: offsets for buffers of a CSV file.
#pragma once

#include "tools/command_line.h"

namespace moec::tools {

Command place_command(CLI::App& app);

}  // namespace moec::tools
