#include "tools/plan_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <map>
#include <span>

#include "runtime/plan.h"
#include "tools/plan_stats.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

constexpr size_t kBuffersShown = 12;

struct KindName {
  fb::BufferKind kind;
  const char* name;
};
constexpr KindName kPersistentKinds[] = {{fb::BufferKind::Param, "weights"},
                                         {fb::BufferKind::Grad, "gradients"},
                                         {fb::BufferKind::OptimizerState, "optimizer state"},
                                         {fb::BufferKind::Scalar, "train state"},
                                         {fb::BufferKind::Io, "data window and I/O"}};
constexpr KindName kActivationKinds[] = {{fb::BufferKind::Saved, "saved activations"},
                                         {fb::BufferKind::Temp, "temporaries"},
                                         {fb::BufferKind::Workspace, "workspace"}};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string title(const std::string& text) { return fmt::format("\n{}\n", text); }

std::string row(const std::string& name, const std::string& value, const std::string& note = "") {
  return fmt::format("  {:<20} {:>10}{}{}\n", name, value, note.empty() ? "" : "  ", note);
}

std::string bytes_row(const std::string& name, uint64_t bytes, const std::string& note = "") {
  return fmt::format("  {:<20} {:>10}  {:>18} B{}{}\n", name, bytes_text(bytes), with_commas(bytes),
                     note.empty() ? "" : "  ", note);
}

std::string ratio_text(uint64_t size, uint64_t bound) {
  if (bound == 0) return "";
  return fmt::format("{:.3f} x its lower bound", static_cast<double>(size) / static_cast<double>(bound));
}

std::string heading(const fb::PlanT& plan) {
  return fmt::format("{}: {} parameters, {} active\n", plan.model->name, with_commas(plan.total_parameters),
                     with_commas(plan.active_parameters));
}

/// What order and recompute do for the memory, where they do anything.
std::string saving_rows(const fb::PlanT& plan) {
  const PredictedTime time = predicted_time(plan);
  const uint64_t saved = plan.saved_by_order;
  std::string text;
  if (saved > 0)
    text += bytes_row(
        "saved by order", saved,
        time.instructions_again > 0
            ? "before recompute"
            : share_text(static_cast<double>(saved),
                         static_cast<double>(saved + arena_size(plan, fb::ArenaKind::Activations))) +
                  " of the arena in the order of differentiation");
  if (time.instructions_again > 0)
    text += row("recompute", with_commas(time.instructions_again),
                fmt::format("instructions a micro-batch, {} of the predicted time",
                            share_text(time.again, time.seconds)));
  return text;
}

/// The predicted time of a step; nothing for a plan without prediction.
std::string time_row(const fb::PlanT& plan, double tokens) {
  if (plan.cost_model.empty()) return "";
  const double seconds = predicted_time(plan).seconds;
  return row("predicted time", short_time_text(seconds),
             fmt::format("for --cost-model {}, whatever this machine is; {} tok/s", plan.cost_model,
                         with_commas(static_cast<uint64_t>(tokens / seconds))));
}

std::string memory_table(const fb::PlanT& plan) {
  const BytesByKind persistent = persistent_bytes(plan);
  std::string text = title("Memory");
  for (const auto& [kind, name] : kPersistentKinds) text += bytes_row(name, bytes_of(persistent, kind));
  if (const int index = program_index(plan, fb::ProgramKind::Accumulate); index >= 0) {
    const ProgramMemory memory = program_memory(plan, static_cast<size_t>(index));
    for (const auto& [kind, name] : kActivationKinds)
      text += bytes_row(name, bytes_of(memory.most, kind), "at most");
  }
  const uint64_t activations = arena_size(plan, fb::ArenaKind::Activations);
  text += bytes_row("activation arena", activations, ratio_text(activations, plan.activations_lower_bound));
  return text + bytes_row("all arenas", device_bytes(plan)) + saving_rows(plan);
}

std::string work_table(const fb::PlanT& plan) {
  double flops = 0, bytes = 0;
  for (const KernelCost& cost : step_costs(plan)) flops += cost.flops, bytes += cost.bytes;
  size_t instructions = 0;
  for (const auto& program : plan.programs) instructions += program->instructions.size();
  const uint64_t tokens = tokens_per_step(*plan.recipe);
  return title("One step") + row("tokens", with_commas(tokens)) + row("arithmetic", si_text(flops, "FLOP")) +
         row("memory traffic", si_text(bytes, "B"), "every operand once") +
         row("instructions", with_commas(instructions), fmt::format("in {} programs", plan.programs.size())) +
         time_row(plan, static_cast<double>(tokens));
}

/// The largest buffers that are live at a program's peak, and the instruction that made each.
std::string live_table(const fb::ProgramT& program, const ProgramMemory& memory) {
  std::string text = fmt::format("  {:>10}  {:<9}  {:>13}  {}\n", "size", "kind", "live", "made by");
  const std::span live(memory.live_at_peak);
  const size_t shown = std::min(kBuffersShown, live.size());
  for (const fb::BufferT* buffer : live.first(shown)) {
    const fb::InstructionT& maker = *program.instructions[buffer->first];
    text += fmt::format("  {:>10}  {:<9}  {:>13}  {} ({})\n", bytes_text(buffer->size),
                        lower(fb::EnumNameBufferKind(buffer->kind)),
                        fmt::format("{}-{}", buffer->first, buffer->last), maker.label, maker.kernel);
  }
  uint64_t rest = 0;
  for (const fb::BufferT* buffer : live.subspan(shown)) rest += buffer->size;
  if (rest == 0) return text;
  return text + fmt::format("  {:>10}  in {} smaller buffers\n", bytes_text(rest), live.size() - shown);
}

/// What a program needs of the activation arena, where that peaks, and why.
std::string program_section(const fb::PlanT& plan, size_t index) {
  const fb::ProgramT& program = *plan.programs[index];
  const std::string name = lower(fb::EnumNameProgramKind(program.kind));
  std::string text = title(fmt::format("Program {}: {} instructions", name, program.instructions.size()));
  const ProgramMemory memory = program_memory(plan, index);
  if (memory.live_peak == 0) return text + "  keeps nothing in the activation arena\n";
  text += bytes_row("arena", memory.arena_peak, ratio_text(memory.arena_peak, memory.live_peak));
  const fb::InstructionT& peak = *program.instructions[memory.peak_instruction];
  text +=
      fmt::format("  peak at instruction {}: {} ({})\n", memory.peak_instruction, peak.label, peak.kernel);
  for (const auto& [kind, kind_name] : kActivationKinds) {
    const uint64_t bytes = bytes_of(memory.at_peak, kind);
    const std::string share = share_text(static_cast<double>(bytes), static_cast<double>(memory.live_peak));
    if (bytes > 0) text += row(kind_name, bytes_text(bytes), share);
  }
  return text + live_table(program, memory);
}

std::string cost_table(const fb::PlanT& plan) {
  const std::vector<KernelCost> costs = step_costs(plan);
  KernelCost sum{.kernel = "all"};
  for (const KernelCost& cost : costs) {
    sum.calls += cost.calls;
    sum.flops += cost.flops;
    sum.bytes += cost.bytes;
    sum.seconds += cost.seconds;
  }
  std::string text = title("Cost of one step by kernel");
  text += fmt::format("  {:<26} {:>7} {:>13} {:>7} {:>10} {:>7} {:>10} {:>7}\n", "kernel", "calls",
                      "arithmetic", "share", "traffic", "share", "predicted", "share");
  const auto line = [&](const KernelCost& cost) {
    text +=
        fmt::format("  {:<26} {:>7} {:>13} {:>7} {:>10} {:>7} {:>10} {:>7}\n", cost.kernel,
                    with_commas(cost.calls), si_text(cost.flops, "FLOP"), share_text(cost.flops, sum.flops),
                    si_text(cost.bytes, "B"), share_text(cost.bytes, sum.bytes),
                    short_time_text(cost.seconds), share_text(cost.seconds, sum.seconds));
  };
  std::for_each(costs.begin(), costs.end(), line);
  line(sum);
  return text;
}

/// What a tuning run chose, by kernel and shapes.
std::string tuning_table(const fb::PlanT& plan) {
  if (plan.tuned_for.empty()) return "";
  std::map<std::string, uint64_t> calls;  // of a step, by line
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions)
      if (const std::string_view variant = runtime::variant_of(plan, *instruction); !variant.empty())
        calls[fmt::format("{:<32} {:<13} {}", instruction->kernel, variant,
                          runtime::call_shapes(plan, *instruction))] += runs_per_step(plan, program->kind);
  std::string text = title(fmt::format("Chosen for {}", plan.tuned_for));
  text += fmt::format("  {:>7} {:<32} {:<13} {}\n", "calls", "kernel", "variant", "shapes");
  for (const auto& [line, count] : calls) text += fmt::format("  {:>7} {}\n", with_commas(count), line);
  return text;
}

}  // namespace

std::string recipe_text(const fb::RecipeT& recipe) {
  std::string text = fmt::format("{} x {} tokens", recipe.batch_size, recipe.seq_len);
  if (recipe.grad_accum > 1) text += fmt::format(" x {} micro-batches", recipe.grad_accum);
  const bool wide = recipe.dtype == fb::DType::F64;
  return text + fmt::format(" a step, {} weights, {} gradients, {} moments",
                            lower(fb::EnumNameDType(recipe.dtype)),
                            lower(fb::EnumNameDType(wide ? fb::DType::F64 : recipe.grad_dtype)),
                            lower(fb::EnumNameDType(wide ? fb::DType::F64 : recipe.moment_dtype)));
}

std::vector<NamedText> recipe_rows(const fb::RecipeT& recipe) {
  const fb::AdamWT adamw = recipe.adamw ? *recipe.adamw : fb::AdamWT{};
  const fb::ScheduleT schedule = recipe.schedule ? *recipe.schedule : fb::ScheduleT{};
  std::vector<NamedText> rows = {
      {"micro-batch", fmt::format("{} x {} tokens", recipe.batch_size, recipe.seq_len)},
      {"micro-batches", fmt::format("{} a step", recipe.grad_accum)},
      {"weights", lower(fb::EnumNameDType(recipe.dtype))},
      {"gradients", lower(fb::EnumNameDType(recipe.grad_dtype))},
      {"moments", lower(fb::EnumNameDType(recipe.moment_dtype))},
      {"learning rate", fmt::format("{}", recipe.lr)},
      {"schedule", fmt::format("{}, warm-up {} of {} steps, decay {}, down to {}",
                               lower(fb::EnumNameScheduleKind(schedule.kind)), schedule.warmup_steps,
                               schedule.total_steps, schedule.decay_steps, schedule.min_ratio)},
      {"AdamW", fmt::format("betas {}, {}, eps {}", adamw.beta1, adamw.beta2, adamw.eps)},
      {"weight decay", fmt::format("{} of {}", adamw.weight_decay,
                                   lower(fb::EnumNameWeightDecayScope(recipe.weight_decay_scope)))},
      {"clip norm", fmt::format("{}", recipe.clip_norm)},
      {"sampling", fmt::format("{}, seed {}", lower(fb::EnumNameSampling(recipe.sampling)), recipe.seed)},
      {"memory budget", recipe.memory_budget == 0 ? "none" : bytes_text(recipe.memory_budget)}};
  if (recipe.loss_scale)
    rows.push_back({"loss scale", fmt::format("{}, doubled after {} clean steps", recipe.loss_scale->initial,
                                              recipe.loss_scale->growth_interval)});
  return rows;
}

std::string summary(const fb::PlanT& plan) {
  return heading(plan) + recipe_text(*plan.recipe) + "\n" + memory_table(plan) + work_table(plan);
}

std::string explanation(const fb::PlanT& plan) {
  std::string text = summary(plan);
  for (size_t i = 0; i < plan.programs.size(); ++i) text += program_section(plan, i);
  return text + cost_table(plan) + tuning_table(plan);
}

}  // namespace moec::tools
