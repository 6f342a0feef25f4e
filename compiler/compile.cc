#include "compiler/compile.h"

#include <algorithm>
#include <cmath>

#include "compiler/autodiff.h"
#include "compiler/builder.h"
#include "compiler/cost_model.h"
#include "compiler/dump.h"
#include "compiler/fuse.h"
#include "compiler/fuse_norm.h"
#include "compiler/gradient_squares.h"
#include "compiler/lower.h"
#include "compiler/memory_budget.h"
#include "compiler/memory_problem.h"
#include "compiler/order.h"
#include "compiler/programs.h"
#include "compiler/storage.h"
#include "planner/validate.h"
#include "schema/plan_file.h"
#include "schema/rules.h"

namespace moec {
namespace {

void check_recipe(const fb::ModelT& model) {
  const std::vector<std::string> faults = recipe_faults(*model.recipe, model.context);
  if (!faults.empty()) compile_error("{}: recipe: {}", model.name, faults.front());
}

Precision precision_of(const fb::RecipeT& recipe) {
  return {recipe.dtype, recipe.dtype == fb::DType::F64 ? fb::DType::F64 : recipe.grad_dtype};
}

/// The recipe with a loss scale where one is used.
fb::RecipeT with_loss_scale(fb::RecipeT recipe) {
  if (recipe.dtype == fb::DType::F16 && !recipe.loss_scale)
    recipe.loss_scale = std::make_unique<fb::LossScaleT>();
  return recipe;
}

/// Classes that each loss of the program knows.
int64_t least_classes(const Graph& graph) {
  int64_t least = INT32_MAX;
  for (const Node& node : graph.nodes()) {
    const KernelInfo& kernel = node.def->kernel();
    if (kernel.input_index("targets") < 0) continue;
    const auto type = [&](const char* operand) -> const TensorType& {
      return graph.value(node.inputs[static_cast<size_t>(kernel.input_index(operand))]).type;
    };
    least =
        std::min(least, kernel.input_index("logits") >= 0 ? type("logits").cols() : type("weight").rows());
  }
  return least;
}

/// Tokens that may be both read by every embedding and predicted by every loss: those below this number.
uint32_t vocab_size(const fb::ModelT& model, const Graph& graph) {
  int64_t size = least_classes(graph);
  bool found = false;
  for (const auto& block : model.blocks)
    for (const auto& node : block->nodes)
      if (const auto* embedding = node->op.AsEmbedding()) {
        size = std::min<int64_t>(size, embedding->vocab_size);
        found = true;
      }
  if (!found) compile_error("{}: the model has no Embedding", model.name);
  return static_cast<uint32_t>(size);
}

void describe_parameters(fb::PlanT& plan, const PlanWriter& writer, const std::vector<Parameter>& parameters,
                         bool all_decay) {
  for (const Parameter& p : parameters) {
    auto entry = std::make_unique<fb::ParameterT>();
    entry->name = p.name;
    entry->param = writer.tensor_id(p.name);
    entry->grad = writer.tensor_id(gradient_name(p.name));
    entry->moment1 = writer.tensor_id(moment1_name(p.name));
    entry->moment2 = writer.tensor_id(moment2_name(p.name));
    entry->remainder = writer.tensor_id(remainder_name(p.name));
    entry->master = writer.tensor_id(master_name(p.name));
    entry->decay = all_decay || p.spec.shape.size() >= 2;
    const auto elements = static_cast<double>(TensorType{fb::DType::U8, p.spec.shape}.elements());
    entry->active_elements = static_cast<uint64_t>(std::llround(elements * p.spec.active_fraction));
    plan.total_parameters += static_cast<uint64_t>(elements);
    plan.active_parameters += entry->active_elements;
    plan.parameters.push_back(std::move(entry));
  }
}

std::unique_ptr<fb::InterfaceT> make_interface(const PlanWriter& writer) {
  auto io = std::make_unique<fb::InterfaceT>();
  io->train_state = writer.tensor_id(kTrainStateName);
  io->metrics = writer.tensor_id(kMetricsName);
  io->window = writer.tensor_id(kWindowName);
  io->tokens = writer.tensor_id(kTokensName);
  io->targets = writer.tensor_id(kTargetsName);
  io->prompt = writer.tensor_id(kPromptName);
  io->logits = writer.tensor_id(kLogitsName);
  return io;
}

/// Refuses what no machine addresses, such as an absurd window of tokens.
void check_size(const fb::PlanT& plan) {
  constexpr uint64_t kMostBytes = uint64_t{1} << 48;
  for (const auto& arena : plan.arenas)
    if (arena->size > kMostBytes)
      compile_error("{}: {} bytes in the arena {} are more than any machine has", plan.model->name,
                    arena->size, fb::EnumNameArenaKind(arena->kind));
}

void check_plan(const fb::PlanT& plan) {
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  const std::vector<std::string> faults = planner::validate(*fb::GetPlan(bytes.data()));
  if (!faults.empty())
    compile_error("the compiled plan is not sound (a fault of the compiler): {}", faults.front());
}

/// Takes the order that frees memory early unless the arena grows by it.
void order(Programs& programs) {
  Graph ordered = order_for_memory(programs.accumulate);
  const uint64_t before = activation_bytes(programs.accumulate), after = activation_bytes(ordered);
  if (after > before) return;
  programs.accumulate = std::move(ordered);
  programs.saved_by_order = before - after;
}

Programs make_programs(const fb::ModelT& model, const CompileOptions& options) {
  check_recipe(model);
  const fb::RecipeT recipe = with_loss_scale(*model.recipe);
  const Precision precision = precision_of(recipe);
  const int64_t window = options.window_tokens;
  if (window <= int64_t{recipe.seq_len})
    compile_error("{}: a window of {} tokens does not hold a sequence of {} and its target", model.name,
                  window, recipe.seq_len);
  std::vector<Parameter> parameters;
  TensorType logits;
  Graph accumulate = accumulate_program(model, recipe, precision, window, options.host_batches, parameters);
  Graph evaluate = evaluate_program(model, recipe, precision, window, options.host_batches);
  Graph prefill = prefill_program(model, recipe, precision, logits);
  for (Graph* graph : {&accumulate, &evaluate, &prefill}) fuse(*graph);
  sum_gradient_squares(accumulate, parameters, options.least_summed_elements);
  Storage storage = lay_out_storage(parameters, recipe, precision, options.host_batches ? 0 : window, logits);
  Graph init = init_program(parameters, precision);
  Graph apply = apply_program(storage, recipe, precision);
  Programs programs{.parameters = std::move(parameters),
                    .storage = std::move(storage),
                    .init = std::move(init),
                    .accumulate = std::move(accumulate),
                    .apply = std::move(apply),
                    .evaluate = std::move(evaluate),
                    .prefill = std::move(prefill)};
  order(programs);
  sum_norm_gradients_last(programs.accumulate);
  return programs;
}

CostModel make_cost_model(const CompileOptions& options) {
  CostModel costs(options.cost_model);
  costs.set_measured(options.measured_seconds);
  return costs;
}

/// Computes again what the budget does not let the backward pass keep. Returns how many bytes more than it
/// needs at least a micro-batch may take: what is left of the budget, or some where there is none.
uint64_t fit_budget(Programs& programs, const fb::ModelT& model, const CostModel& costs) {
  constexpr uint64_t kSpare = uint64_t{32} << 20;  // less than the cache of a large GPU
  const uint64_t budget = model.recipe->memory_budget;
  if (budget == 0) return kSpare;
  const Ways ways(programs, *model.recipe, costs);
  std::optional<Way> way = ways.fastest_within(budget);
  if (!way) {
    Shortage shortage = ways.shortage(budget);
    throw MemoryError(fmt::format("{}: recipe: memory_budget of {} bytes is {} bytes short", model.name,
                                  budget, shortage.least - budget),
                      std::move(shortage));
  }
  programs.accumulate = std::move(way->accumulate);
  return budget - way->point.bytes;
}

/// `spare` bytes more than it needs at least are the micro-batch's.
void write_programs(PlanWriter& writer, const Programs& programs, uint64_t spare,
                    const CompileOptions& options) {
  const std::pair<fb::ProgramKind, const Graph*> graphs[] = {
      {fb::ProgramKind::Init, &programs.init},
      {fb::ProgramKind::Accumulate, &programs.accumulate},
      {fb::ProgramKind::Apply, &programs.apply},
      {fb::ProgramKind::Evaluate, &programs.evaluate},
      {fb::ProgramKind::Prefill, &programs.prefill}};
  for (const auto& [kind, graph] : graphs) {
    if (options.on_stage)
      options.on_stage(fmt::format("{}: graph", fb::EnumNameProgramKind(kind)), dump_graph(*graph));
    writer.add_program(kind, *graph, kind == fb::ProgramKind::Accumulate ? spare : 0);
  }
}

}  // namespace

fb::PlanT compile(const fb::ModelT& model, const CompileOptions& options) {
  Programs programs = make_programs(model, options);
  const CostModel costs = make_cost_model(options);
  const uint64_t spare = fit_budget(programs, model, costs);

  PlanWriter writer(programs.storage, &costs);
  const fb::RecipeT recipe = with_loss_scale(*model.recipe);
  write_programs(writer, programs, spare, options);
  fb::PlanT plan;
  describe_parameters(plan, writer, programs.parameters,
                      recipe.weight_decay_scope == fb::WeightDecayScope::All);
  auto io = make_interface(writer);
  fb::PlanT lowered = std::move(writer).finish();
  lowered.parameters = std::move(plan.parameters);
  lowered.total_parameters = plan.total_parameters;
  lowered.active_parameters = plan.active_parameters;
  lowered.io = std::move(io);
  lowered.model = std::make_unique<fb::ModelT>(model);
  lowered.recipe = std::make_unique<fb::RecipeT>(recipe);
  lowered.vocab_size = vocab_size(model, programs.accumulate);
  lowered.saved_by_order = programs.saved_by_order;
  if (options.on_stage)
    for (const auto& program : lowered.programs)
      options.on_stage(fmt::format("{}: instructions", fb::EnumNameProgramKind(program->kind)),
                       dump_program(lowered, *program));
  check_size(lowered);
  check_plan(lowered);
  return lowered;
}

std::vector<FrontierPoint> frontier(const fb::ModelT& model, const CompileOptions& options) {
  const Programs programs = make_programs(model, options);
  const CostModel costs = make_cost_model(options);
  std::vector<FrontierPoint> points;
  Ways(programs, *model.recipe, costs).visit(UINT64_MAX, [&](const Way& way) {
    if (points.empty() || way.point.bytes < points.back().bytes) points.push_back(way.point);
    return false;
  });
  return points;
}

std::optional<FrontierPoint> fastest_within(uint64_t budget, bool recompute, const fb::ModelT& model,
                                            const CompileOptions& options) {
  const Programs programs = make_programs(model, options);
  const CostModel costs = make_cost_model(options);
  const Ways ways(programs, *model.recipe, costs);
  if (!recompute) {
    const FrontierPoint point = ways.without_budget().point;
    return point.bytes <= budget ? std::optional(point) : std::nullopt;
  }
  const std::optional<Way> way = ways.fastest_within(budget);
  return way ? std::optional(way->point) : std::nullopt;
}

}  // namespace moec
