// moec explain: a plan, or what sets two apart.
#pragma once

#include "tools/command_line.h"

namespace moec::tools {

Command explain_command(CLI::App& app);

}  // namespace moec::tools
