// The frame of a command-line tool: parsing, wrong use, errors and exit codes.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
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

/// "'x' is not a whole number from 1 to 8"; without `high`, "... of at least 1".
std::string number_fault(const std::string& text, bool whole, const std::string& low,
                         const std::string& high);

/// Accepts numbers of type T of at least `low`, and at most `high` where one is given; says what it expected.
template <class T>
CLI::Validator number(T low, std::optional<T> high = {}) {
  return {[low, high](const std::string& text) {
            T value{};
            const bool wraps = std::is_unsigned_v<T> && text.starts_with('-');
            errno = 0;  // a whole number that is too large becomes the largest one, and errno tells
            const bool known =
                CLI::detail::lexical_cast(text, value) && !(std::is_integral_v<T> && errno == ERANGE);
            if (!wraps && known && value >= low && !(high && value > *high)) return std::string();
            return number_fault(text, std::is_integral_v<T>, fmt::format("{}", low),
                                high ? fmt::format("{}", *high) : "");
          },
          ""};
}

/// Accepts one of these words.
CLI::Validator one_of(std::vector<std::string> words);

/// Accepts sizes such as 139GiB (units.h), of at least one byte.
CLI::Validator byte_size();

/// The root of a tool: its name, --help, --version and the look of the help text.
void describe_tool(CLI::App& app, const std::string& name, const std::string& description);

CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& help);

/// Parses, runs the command that was asked for, and returns the exit code. Whatever goes wrong becomes one
/// line on stderr.
int run_tool(CLI::App& app, int argc, const char* const* argv, std::span<const Command> commands);

/// Refuses to write to a file that is read too: `option` names it in the message.
Status check_replaces_none(std::string_view option, const std::string& written,
                           std::span<const std::string> read);

}  // namespace moec::tools
