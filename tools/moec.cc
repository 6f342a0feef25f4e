// moec: compiles model specs to plans, explains and checks plans.
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string_view>

#include "planner/validate.h"
#include "runtime/file_io.h"
#include "runtime/plan.h"
#include "schema/version.h"
#include "tools/command_line.h"
#include "tools/diff_command.h"
#include "tools/explain_command.h"
#include "tools/fit_command.h"
#include "tools/frontier_command.h"
#include "tools/place_command.h"
#include "tools/plan_report.h"
#include "tools/recipe_flags.h"
#include "tools/terminal.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

struct CompileFlags {
  std::string spec;
  std::string output;
  std::string dump;  // "-" for stdout, empty for none
  RecipeFlags recipe;
};

Status compile_spec(const CompileFlags& flags) {
  if (flags.spec.empty()) return input_error("SPEC is missing; see --help");
  const std::string output =
      flags.output.empty() ? std::filesystem::path(flags.spec).stem().string() + ".plan" : flags.output;
  MOEC_RETURN_IF_ERROR(check_replaces_none("--output", output, {{flags.spec}}));
  MOEC_RETURN_IF_ERROR(check_replaces_none("--dump-stages", flags.dump, {{flags.spec}}));
  std::string stages;
  CompileOptions options;
  if (!flags.dump.empty())
    options.on_stage = [&](const std::string& stage, const std::string& text) {
      stages += fmt::format("== {}\n{}\n", stage, text);
    };
  const auto start = std::chrono::steady_clock::now();
  MOEC_ASSIGN_OR_RETURN(const fb::PlanT plan, flags.recipe.compile_spec(flags.spec, options));
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  if (flags.dump == "-") fmt::print("{}", stages);
  if (!flags.dump.empty() && flags.dump != "-") MOEC_RETURN_IF_ERROR(runtime::write_file(flags.dump, stages));
  MOEC_RETURN_IF_ERROR(runtime::write_file(
      output, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())));
  fmt::print("{}\n{}: {}, compiled in {}\n", summary(plan), output, bytes_text(bytes.size()),
             duration_text(elapsed.count()));
  return {};
}

/// All faults that the validator finds in a file whose structure it can walk.
std::vector<std::string> validator_faults(const std::string& bytes) {
  flatbuffers::Verifier verifier(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  if (!fb::VerifyPlanBuffer(verifier)) return {};
  const fb::Plan& plan = *fb::GetPlan(bytes.data());
  return plan.version() == kPlanVersion ? planner::validate(plan) : std::vector<std::string>();
}

Status verify(const std::string& path) {
  MOEC_ASSIGN_OR_RETURN(std::string bytes, runtime::read_file(path));
  const auto loaded = runtime::parse_plan(bytes, path);
  if (!loaded.ok()) {
    for (const std::string& fault : validator_faults(bytes)) fmt::print("{}: {}\n", path, printable(fault));
    return loaded.error();
  }
  const fb::PlanT& plan = (*loaded)->plan;
  size_t instructions = 0;
  for (const auto& program : plan.programs) instructions += program->instructions.size();
  fmt::print("OK: {} programs, {} instructions, {} buffers\n", plan.programs.size(), instructions,
             plan.buffers.size());
  return {};
}

Command compile_command(CLI::App& app) {
  auto flags = std::make_shared<CompileFlags>();
  app.add_option("SPEC", flags->spec, "Model spec (FlatBuffers JSON, see schema/README.md)");
  app.add_option("-o,--output", flags->output, "Plan to write (default: SPEC's stem + .plan, here)")
      ->type_name("PLAN");
  app.add_flag("--dump-stages{-}", flags->dump,
               "Write every program as text, to FILE or stdout: its graph, then its instructions and "
               "where\ntheir operands lie")
      ->type_name("[=FILE]");
  flags->recipe.add_to(app);
  return {&app, [flags] { return compile_spec(*flags); }};
}

Command verify_command(CLI::App& app) {
  CLI::App* command =
      add_command(app, "verify", "Check a plan's structure and meaning with the independent validator");
  auto path = std::make_shared<std::string>();
  command->add_option("PLAN", *path, "Plan file")->required();
  command->footer(
      "Example:\n  moec verify tiny.plan\n\nPrints every fault that it finds; exit code 2 when there is "
      "one.");
  return {command, [path] { return verify(*path); }};
}

constexpr const char* kExamples = R"(Examples:
  moec schema/examples/moe-tiny.json -o tiny.plan
  moec schema/examples/moe-6.9b.json --batch-size 4 --grad-dtype same
  moec explain tiny.plan --html tiny.html
  moec explain --diff tiny.plan other.plan
  moec verify tiny.plan

Exit codes: 0 done, 1 failed or does not fit, 2 wrong use or input.)";

}  // namespace
}  // namespace moec::tools

int main(int argc, char** argv) {
  using namespace moec::tools;
  CLI::App app;
  describe_tool(app, "moec",
                "Compiles a model spec to a plan: kernels and memory of training, fixed before the run.");
  app.footer(kExamples);
  const Command commands[] = {compile_command(app),  explain_command(app), verify_command(app),
                              frontier_command(app), fit_command(app),     place_command(app),
                              diff_command(app)};
  return run_tool(app, argc, argv, commands);
}
