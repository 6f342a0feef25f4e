// moec diff: two devices in lockstep.
#pragma once

#include "tools/command_line.h"

namespace moec::tools {

Command diff_command(CLI::App& app);

}  // namespace moec::tools
