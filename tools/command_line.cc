#include "tools/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "compiler/error.h"
#include "runtime/file_io.h"
#include "tools/terminal.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

/// Help without the default that CLI11 shows in braces behind a flag that may have a value.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_name(const CLI::Option* option, bool positional) const override {
    const std::string name = CLI::Formatter::make_option_name(option, positional);
    return name.substr(0, name.find('{'));
  }
};

bool is_flag(const std::string& word) { return word.size() > 1 && word[0] == '-'; }

std::string suggestion(std::string_view word, std::span<const std::string> candidates) {
  const std::string found = nearest(word, candidates);
  return found.empty() ? "" : fmt::format("; did you mean '{}'?", found);
}

/// Long names: a short one is near everything.
std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  return flags;
}

std::vector<std::string> commands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

bool takes_positionals(const CLI::App& app) {
  const auto options = app.get_options();
  return std::any_of(options.begin(), options.end(), [](const auto* o) { return o->get_positional(); });
}

/// A first word that is no command: always wrong where the root takes no file, otherwise when it is near a
/// command and no file.
std::optional<std::string> unknown_command(const CLI::App& app, const std::string& word) {
  const std::vector<std::string> commands = commands_of(app);
  if (is_flag(word) || std::find(commands.begin(), commands.end(), word) != commands.end()) return {};
  const std::string hint = suggestion(word, commands);
  if (takes_positionals(app) && (hint.empty() || runtime::file_exists(word))) return {};
  return fmt::format("unknown command '{}'{}", word, hint.empty() ? "; see --help" : hint);
}

/// "--x=", for which the parser would take the next word as the value.
std::optional<std::string> missing_value(std::span<const char* const> arguments) {
  for (const std::string_view argument : arguments) {
    if (argument == "--") break;
    if (argument.starts_with("--") && argument.find('=') == argument.size() - 1)
      return fmt::format("{}: needs a value", argument.substr(0, argument.size() - 1));
  }
  return {};
}

/// The command that the arguments chose, the root when none.
const CLI::App& chosen(const CLI::App& app) {
  const auto parsed = app.get_subcommands();
  return parsed.empty() ? app : *parsed.front();
}

/// "moerun train": what errors begin with.
std::string called(const CLI::App& app) {
  const CLI::App& command = chosen(app);
  return &command == &app ? app.get_name() : app.get_name() + " " + command.get_name();
}

/// "unknown flag '--x'; did you mean '--y'?": what is wrong with an argument that `app` does not take.
std::string unknown_argument(const std::string& argument, const CLI::App& app) {
  if (!is_flag(argument)) return fmt::format("unexpected argument '{}'; see --help", argument);
  const std::string name = argument.substr(0, argument.find('='));
  const std::string hint = suggestion(name, flags_of(app));
  return fmt::format("unknown flag '{}'{}", name, hint.empty() ? "; see --help" : hint);
}

/// What is wrong with the arguments. An argument that nobody took comes first: it often is the reason why
/// another one is missing.
std::string describe(const CLI::ParseError& error, const CLI::App& app) {
  const CLI::App& command = chosen(app);
  const std::vector<std::string> extras = app.remaining(true);
  const auto flag = std::find_if(extras.begin(), extras.end(), is_flag);
  if (flag != extras.end()) return unknown_argument(*flag, command);
  if (!extras.empty()) return unknown_argument(extras.front(), command);
  std::string message = error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  return message;
}

int report(const std::string& tool, const std::string& message, ExitCode code) {
  const Paint paint(stderr);
  fmt::print(stderr, "{} {}\n", paint.bold_red(tool + ":"), printable(message));
  return code;
}

int run_command(const std::string& tool, const Command& command) {
  try {
    const Status status = command.run();
    if (status.ok() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return kDone;
    if (status.ok()) return report(tool, "standard output cannot be written", kFailed);
    const Error& error = status.error();
    return report(tool, error.message, error.kind == ErrorKind::kInput ? kWrongUse : kFailed);
  } catch (const CompileError& e) {
    return report(tool, e.what(), kWrongUse);
  } catch (const std::bad_alloc&) {
    return report(tool, "out of host memory", kFailed);
  } catch (const std::exception& e) {
    return report(tool, e.what(), kFailed);
  }
}

}  // namespace

size_t edit_distance(std::string_view a, std::string_view b) {
  // Rows of the dynamic programme: distances from prefixes of `a` to every prefix of `b`.
  std::vector<size_t> before, above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before = above;
    above = row;
  }
  return above[b.size()];
}

std::string nearest(std::string_view word, std::span<const std::string> candidates) {
  size_t best = std::max<size_t>(2, word.size() / 3) + 1;
  std::string found;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < std::min(best, candidate.size())) {
      best = distance;
      found = candidate;
    }
  }
  return found;
}

std::string number_fault(const std::string& text, bool whole, const std::string& low,
                         const std::string& high) {
  return fmt::format("'{}' is not a {}number {}", text, whole ? "whole " : "",
                     high.empty() ? "of at least " + low : fmt::format("from {} to {}", low, high));
}

CLI::Validator one_of(std::vector<std::string> words) {
  return {[words = std::move(words)](const std::string& text) {
            const bool known = std::find(words.begin(), words.end(), text) != words.end();
            return known ? "" : fmt::format("'{}' is not one of {}", text, fmt::join(words, ", "));
          },
          ""};
}

CLI::Validator byte_size() {
  return {[](const std::string& text) {
            const std::optional<uint64_t> bytes = parse_bytes(text);
            if (!bytes) return fmt::format("'{}' is not a size such as 139GiB, 512MiB, 80GB or 4096", text);
            return *bytes == 0 ? fmt::format("'{}' is less than 1 B", text) : "";
          },
          ""};
}

void describe_tool(CLI::App& app, const std::string& name, const std::string& description) {
  app.name(name);
  app.description(description);
  app.set_help_flag("-h,--help", "Print this help");
  app.set_version_flag("--version", fmt::format("{} {}", name, MOEC_VERSION), "Print the version");
  const auto formatter = std::make_shared<HelpFormatter>();
  formatter->column_width(34);
  formatter->label("Positionals", "Arguments");
  formatter->label("SUBCOMMAND", "COMMAND");
  formatter->label("REQUIRED", "(required)");
  app.formatter(formatter);
}

CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& help) {
  return app.add_subcommand(name, help)->group("Commands");
}

int run_tool(CLI::App& app, int argc, const char* const* argv, std::span<const Command> commands) {
  const std::string tool = app.get_name();
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is a write that fails
  try {
    if (!commands_of(app).empty()) {
      if (argc < 2) return report(tool, "nothing to do; see --help", kWrongUse);
      if (const auto fault = unknown_command(app, argv[1])) return report(tool, *fault, kWrongUse);
    }
    if (const auto fault = missing_value({argv, static_cast<size_t>(argc)}))
      return report(tool, *fault, kWrongUse);
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& asked) {
      const int code = app.exit(asked, std::cout, std::cerr);
      return std::cout.flush() ? code : report(tool, "standard output cannot be written", kFailed);
    } catch (const CLI::ParseError& error) {
      return report(called(app), describe(error, app), kWrongUse);
    }
  } catch (const std::exception& e) {
    return report(tool, e.what(), kFailed);
  }
  const CLI::App* wanted = &chosen(app);
  const auto command =
      std::find_if(commands.begin(), commands.end(), [&](const Command& c) { return c.app == wanted; });
  return run_command(called(app), *command);
}

Status check_replaces_none(std::string_view option, const std::string& written,
                           std::span<const std::string> read) {
  for (const std::string& file : read)
    if (std::error_code missing; std::filesystem::equivalent(written, file, missing))
      return input_error(fmt::format("{} {}: would replace a file that is read", option, written));
  return {};
}

}  // namespace moec::tools
