// The frame of a command-line tool: parsing, wrong use, errors and exit codes.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/status.h"

namespace moec::tools {

enum ExitCode { kDone = 0, kFailed = 1, kWrongUse = 2 };

/// A (sub)command with its flags, and what it does once they are parsed. A root app that does something
/// itself is a command, too.
struct Command {
  CLI::App* app = nullptr;
  std::function<Status()> run;
};

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`.
size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate that `word` was most likely meant to be, empty when none is near.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

/// The root of a tool: its name, --help, --version and the look of the help text.
void describe_tool(CLI::App& app, const std::string& name, const std::string& description);

/// Parses, runs the command that was asked for, and returns the exit code. Whatever goes wrong becomes one
/// line on stderr.
int run_tool(CLI::App& app, int argc, const char* const* argv, std::span<const Command> commands);

}  // namespace moec::tools
