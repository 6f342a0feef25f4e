// The commands of moerun.
#pragma once

#include <memory>

#include "runtime/plan.h"
#include "runtime/session.h"
#include "runtime/status.h"
#include "tools/command_line.h"
#include "tools/devices.h"

namespace moec::tools {

Command train_command(CLI::App& app);
Command eval_command(CLI::App& app);
Command generate_command(CLI::App& app);
Command tune_command(CLI::App& app);

/// A session on the device of the flags.
Result<runtime::Session> open_session(std::shared_ptr<const runtime::LoadedPlan> plan,
                                      const DeviceFlags& flags);

}  // namespace moec::tools
