#include "tools/explain_command.h"

#include <fmt/format.h>

#include <memory>

#include "runtime/file_io.h"
#include "runtime/plan.h"
#include "tools/plan_diff.h"
#include "tools/plan_report.h"
#include "tools/report/html_report.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

struct ExplainFlags {
  std::string plan;
  std::string other;
  std::string html;
  bool diff = false;
};

Status explain(const ExplainFlags& flags) {
  if (flags.diff == flags.other.empty())
    return input_error(flags.diff ? "--diff compares two plans; the second is missing"
                                  : "two plans are compared with --diff only");
  if (flags.diff && !flags.html.empty()) return input_error("--html explains one plan, --diff compares two");
  MOEC_RETURN_IF_ERROR(check_replaces_none("--html", flags.html, {{flags.plan}}));
  MOEC_ASSIGN_OR_RETURN(const auto loaded, runtime::load_plan(flags.plan));
  if (flags.diff) {
    MOEC_ASSIGN_OR_RETURN(const auto other, runtime::load_plan(flags.other));
    fmt::print("A: {}\nB: {}\n{}", flags.plan, flags.other, difference(loaded->plan, other->plan));
    return {};
  }
  if (flags.html.empty()) {
    fmt::print("{}", explanation(loaded->plan));
    return {};
  }
  const std::string page = html_report(loaded->plan);
  MOEC_RETURN_IF_ERROR(runtime::write_file(flags.html, page));
  fmt::print("{}: {}\n", flags.html, bytes_text(page.size()));
  return {};
}

constexpr const char* kExamples = R"(Examples:
  moec explain tiny.plan
  moec explain tiny.plan --html tiny.html
  moec explain --diff tiny.plan other.plan)";

}  // namespace

Command explain_command(CLI::App& app) {
  CLI::App* command = add_command(
      app, "explain", "Memory and cost of a plan: what lives where, when, and why the peak is what it is");
  auto flags = std::make_shared<ExplainFlags>();
  command->add_option("PLAN", flags->plan, "Plan file")->required();
  command->add_option("OTHER", flags->other, "The plan to compare it with");
  command->add_flag("--diff", flags->diff, "What OTHER changes in settings, memory and cost");
  command->add_option("--html", flags->html, "Write a page for a browser instead of text")->type_name("FILE");
  command->footer(kExamples);
  return {command, [flags] { return explain(*flags); }};
}

}  // namespace moec::tools
