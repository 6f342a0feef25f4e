// moec frontier: memory against time.
#pragma once

#include "tools/command_line.h"

namespace moec::tools {

Command frontier_command(CLI::App& app);

}  // namespace moec::tools
