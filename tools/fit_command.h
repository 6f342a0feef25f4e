// moec fit: how large a micro-batch and a sequence a memory holds.
#pragma once

#include "tools/command_line.h"

namespace moec::tools {

Command fit_command(CLI::App& app);

}  // namespace moec::tools
