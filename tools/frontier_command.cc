#include "tools/frontier_command.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "tools/recipe_flags.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

struct FrontierFlags {
  std::string spec;
  bool json = false;
  bool all = false;
  RecipeFlags recipe;
};

/// Every point that is needed to see the curve: the ends, and in between those that save at least this share
/// of the range.
std::vector<FrontierPoint> outline(const std::vector<FrontierPoint>& points) {
  constexpr uint64_t kRows = 20;
  const uint64_t least_saving = (points.front().bytes - points.back().bytes) / kRows;
  std::vector<FrontierPoint> shown;
  for (const FrontierPoint& point : points)
    if (shown.empty() || &point == &points.back() || shown.back().bytes - point.bytes >= least_saving)
      shown.push_back(point);
  return shown;
}

std::string table(const std::vector<FrontierPoint>& points, double tokens) {
  const FrontierPoint& first = points.front();
  std::string text = fmt::format("{:>12} {:>8} {:>12} {:>8} {:>12} {:>11} {:>7}\n", "all arenas", "", "step",
                                 "", "tok/s", "recomputed", "remade");
  for (const FrontierPoint& point : points)
    text += fmt::format("{:>12} {:>8} {:>12} {:>8} {:>12} {:>11} {:>7}\n", bytes_text(point.bytes),
                        share_text(static_cast<double>(point.bytes), static_cast<double>(first.bytes)),
                        short_time_text(point.seconds), share_text(point.seconds, first.seconds),
                        with_commas(static_cast<uint64_t>(tokens / point.seconds)), point.recomputed,
                        point.remade);
  return text;
}

nlohmann::json to_json(const std::vector<FrontierPoint>& points) {
  nlohmann::json rows = nlohmann::json::array();
  for (const FrontierPoint& point : points)
    rows.push_back({{"bytes", point.bytes},
                    {"seconds", point.seconds},
                    {"recompute_seconds", point.recompute_seconds},
                    {"recomputed", point.recomputed},
                    {"remade", point.remade}});
  return rows;
}

Status print_frontier(const FrontierFlags& flags) {
  const fb::ModelT model = flags.recipe.read_spec(flags.spec);
  MOEC_ASSIGN_OR_RETURN(const CompileOptions options, flags.recipe.options());
  std::vector<FrontierPoint> points = frontier(model, options);
  if (!flags.all) points = outline(points);
  const fb::RecipeT& recipe = *model.recipe;
  const double tokens = double{1} * recipe.batch_size * recipe.seq_len * recipe.grad_accum;
  if (flags.json)
    fmt::print("{}\n", nlohmann::json({{"model", model.name},
                                       {"cost_model", options.cost_model},
                                       {"tokens_per_step", tokens},
                                       {"points", to_json(points)}})
                           .dump(2));
  else
    fmt::print("{}: memory against the step time predicted for {}\n\n{}", model.name, options.cost_model,
               table(points, tokens));
  return {};
}

constexpr const char* kExamples = R"(Examples:
  moec frontier schema/examples/gpt2-124m.json
  moec frontier schema/examples/gpt2-124m.json --batch-size 16 --dtype bf16 --all --json

A row is a plan that `moec SPEC --memory-budget BYTES` makes. 'recomputed' counts instructions that run again,
'remade' the activations of experts that their backward products make again beside their results.)";

}  // namespace

Command frontier_command(CLI::App& app) {
  CLI::App* command =
      add_command(app, "frontier", "Memory against predicted step time, by computing activations again");
  auto flags = std::make_shared<FrontierFlags>();
  command->add_option("SPEC", flags->spec, "Model spec")->required();
  command->add_flag("--json", flags->json, "Print JSON: bytes and seconds");
  command->add_flag("--all", flags->all, "Every point, not only some twenty that show the curve");
  flags->recipe.add_to(*command, MemoryBudgetFlag::kNone);
  command->footer(kExamples);
  return {command, [flags] { return print_frontier(*flags); }};
}

}  // namespace moec::tools
