#include "tools/fit_command.h"

#include <fmt/format.h>

#include <memory>

#include "compiler/fit.h"
#include "tools/recipe_flags.h"
#include "tools/shortage.h"
#include "tools/terminal.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

struct FitFlags {
  std::string spec;
  std::string memory;
  RecipeFlags recipe;
};

/// One way to use the memory: a row of the table.
std::string row(const std::string& name, const fb::ModelT& model, uint64_t budget, bool recompute,
                const CompileOptions& options, const std::string& note = "") {
  const auto point = fastest_within(budget, recompute, model, options);
  if (!point) return fmt::format("  {:<34} does not fit\n", name);
  const fb::RecipeT& recipe = *model.recipe;
  const double tokens = double{1} * recipe.batch_size * recipe.seq_len * recipe.grad_accum;
  return fmt::format("  {:<34} {:>5} x {:<7} {:>10} {:>10} {:>10} tok/s{}\n", name, recipe.batch_size,
                     recipe.seq_len, bytes_text(point->bytes), short_time_text(point->seconds),
                     with_commas(static_cast<uint64_t>(tokens / point->seconds)), note);
}

/// The largest steps without recompute, then with it, for which the former are a good guess.
std::string rows(const fb::ModelT& model, uint64_t budget, const CompileOptions& options) {
  LiveOutput out(stderr);
  fb::ModelT wide(model), longest(model);
  longest.recipe->batch_size = 1;
  uint32_t batch_size = model.recipe->batch_size, seq_len = model.recipe->seq_len;
  std::string text;
  for (const bool recompute : {false, true}) {
    const std::string how = recompute ? ", recompute" : "";
    const auto show = [&](const fb::RecipeT& recipe) {
      out.status(fmt::format("trying {} x {}{}", recipe.batch_size, recipe.seq_len, how));
    };
    wide.recipe->batch_size = largest_batch_size(model, budget, recompute, options, batch_size, show);
    longest.recipe->seq_len = largest_seq_len(longest, budget, recompute, options, seq_len, show);
    if (wide.recipe->batch_size > 0) {
      batch_size = wide.recipe->batch_size;
      text += row("largest micro-batch" + how, wide, budget, recompute, options,
                  batch_size == kMostBatchSize ? "  (no larger one is tried)" : "");
    }
    if (longest.recipe->seq_len > 0) {
      seq_len = longest.recipe->seq_len;
      text += row("longest sequence" + how, longest, budget, recompute, options,
                  seq_len == model.context ? "  (the model's context)" : "");
    }
  }
  return text;
}

Status print_fit(const FitFlags& flags) {
  fb::ModelT model = flags.recipe.read_spec(flags.spec);
  MOEC_ASSIGN_OR_RETURN(const CompileOptions options, flags.recipe.options());
  const uint64_t budget = *parse_bytes(flags.memory);
  fmt::print("{} in {}, times predicted for {}\n\n{}", model.name, bytes_text(budget), options.cost_model,
             row("the recipe", model, budget, false, options) +
                 row("the recipe, recompute", model, budget, true, options) + rows(model, budget, options));
  if (fastest_within(budget, true, model, options)) return {};
  model.recipe->memory_budget = budget;
  try {
    compile(model, options);
  } catch (const MemoryError& error) {
    return shortage_failure(flags.spec, model, options, error.shortage);
  }
  return {};
}

constexpr const char* kExamples = R"(Examples:
  moec fit schema/examples/moe-6.9b.json --memory 139GiB
  moec fit schema/examples/gpt2-124m.json --memory 24GiB --dtype bf16 --cost-model h100

The memory of a row is what `moec SPEC --memory-budget BYTES` needs; rows without recompute run no instruction twice,
but make experts' activations again inside a kernel of the backward pass. Recompute chooses what to keep, these as well,
and so can be faster where there is memory. A plan may take more, so that gradients can run beside other work: up to
32 MiB without a budget, with one what is left of it.
Exit code 1: the recipe does not fit, not even with recompute.)";

}  // namespace

Command fit_command(CLI::App& app) {
  CLI::App* command = add_command(
      app, "fit",
      "The largest micro-batch and sequence length that a memory holds, with and without recompute");
  auto flags = std::make_shared<FitFlags>();
  command->add_option("SPEC", flags->spec, "Model spec")->required();
  command
      ->add_option("--memory", flags->memory,
                   "Bytes for all arenas, e.g. 139GiB; on a GPU, context and cuBLAS take 0.6 GiB more")
      ->required()
      ->check(byte_size())
      ->type_name("BYTES");
  flags->recipe.add_to(*command, MemoryBudgetFlag::kNone);
  command->footer(kExamples);
  return {command, [flags] { return print_fit(*flags); }};
}

}  // namespace moec::tools
