// The commands of moerun.
#pragma once

#include <string>

#include "runtime/plan.h"
#include "runtime/session.h"
#include "runtime/status.h"
#include "tools/command_line.h"

namespace moec::tools {

Command train_command(CLI::App& app);
Command eval_command(CLI::App& app);
Command generate_command(CLI::App& app);

/// A session on the CPU device with `threads` threads, 0 for all cores.
Result<runtime::Session> open_session(std::shared_ptr<const runtime::LoadedPlan> plan, int threads);

/// Adds --threads.
void add_threads_flag(CLI::App& app, int& threads);

}  // namespace moec::tools
