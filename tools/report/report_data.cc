#include "tools/report/report_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "compiler/compile.h"
#include "compiler/cost_model.h"
#include "planner/planner.h"
#include "runtime/plan.h"
#include "tools/plan_report.h"
#include "tools/plan_stats.h"

namespace moec::tools {
namespace {

using Json = nlohmann::json;

/// Texts, each once.
class StringTable {
 public:
  size_t index(const std::string& text) {
    const auto [it, added] = indices_.try_emplace(text, strings_.size());
    if (added) strings_.push_back(text);
    return it->second;
  }
  Json json() const { return strings_; }

 private:
  std::map<std::string, size_t> indices_;
  std::vector<std::string> strings_;
};

/// The ceilings of the plan's device; without one, of the device that plans are made for by default.
const Ceilings& ceilings_of(const fb::PlanT& plan) {
  const Ceilings* known = find_ceilings(plan.cost_model);
  return known != nullptr ? *known : *find_ceilings(CompileOptions().cost_model);
}

/// FLOP/s that an instruction could reach, by the widest common type of its operands: half where any of them
/// is, since products accumulate in more than they read.
double arithmetic_ceiling(const fb::PlanT& plan, const fb::InstructionT& instruction,
                          const Ceilings& ceilings) {
  double ceiling = ceilings.single;
  for (const auto* operands : {&instruction.inputs, &instruction.outputs})
    for (const int tensor : *operands) {
      if (tensor < 0) continue;
      const fb::DType dtype = plan.tensors[tensor]->dtype;
      if (dtype == fb::DType::F64) return ceilings.wide;
      if (dtype == fb::DType::BF16 || dtype == fb::DType::F16) ceiling = ceilings.half;
    }
  return ceiling;
}

/// Five digits are more than a screen shows, and a third of the characters.
double rounded(double value) { return std::stod(fmt::format("{:.5g}", value)); }

std::string shape_text(const fb::TensorT& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.shape, ", "));
}

Json header(const fb::PlanT& plan) {
  double flops = 0, bytes = 0;
  for (const KernelCost& cost : step_costs(plan)) flops += cost.flops, bytes += cost.bytes;
  Json recipe = Json::array();
  for (const auto& [name, text] : recipe_rows(*plan.recipe)) recipe.push_back({name, text});
  Json arenas = Json::array();
  for (const auto& arena : plan.arenas)
    arenas.push_back({{"kind", fb::EnumNameArenaKind(arena->kind)}, {"size", arena->size}});
  return {{"name", plan.model->name},
          {"recipe_text", recipe_text(*plan.recipe)},
          {"recipe", std::move(recipe)},
          {"arenas", std::move(arenas)},
          {"parameters", plan.total_parameters},
          {"active_parameters", plan.active_parameters},
          {"vocab_size", plan.vocab_size},
          {"context", plan.model->context},
          {"tokens", tokens_per_step(*plan.recipe)},
          {"device_bytes", device_bytes(plan)},
          {"flops", flops},
          {"bytes", bytes},
          {"alignment", planner::kAlignment},
          {"activations_lower_bound", plan.activations_lower_bound},
          {"saved_by_order", plan.saved_by_order}};
}

Json programs(const fb::PlanT& plan) {
  Json list = Json::array();
  size_t first = 0;
  for (size_t i = 0; i < plan.programs.size(); ++i) {
    const fb::ProgramT& program = *plan.programs[i];
    const ProgramMemory memory = program_memory(plan, i);
    list.push_back({{"kind", fb::EnumNameProgramKind(program.kind)},
                    {"runs_per_step", runs_per_step(plan, program.kind)},
                    {"first", first},
                    {"count", program.instructions.size()},
                    {"arena_peak", memory.arena_peak},
                    {"live_peak", memory.live_peak},
                    {"peak_instruction", memory.peak_instruction}});
    first += program.instructions.size();
  }
  return list;
}

Json present(const std::vector<int>& tensors) {
  Json list = Json::array();
  for (const int tensor : tensors)
    if (tensor >= 0) list.push_back(tensor);
  return list;
}

/// "linear", "linear (cublas.1)".
std::string kernel_text(const fb::PlanT& plan, const fb::InstructionT& instruction) {
  const std::string_view variant = runtime::variant_of(plan, instruction);
  return variant.empty() ? instruction.kernel : fmt::format("{} ({})", instruction.kernel, variant);
}

/// All programs' instructions, one program after the other. `derived` are the seconds that the plan does not
/// predict: the longer of what FLOPs and bytes take at the ceilings.
Json instructions(const fb::PlanT& plan, const Ceilings& ceilings, StringTable& strings) {
  Json columns;
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions) {
      const double ceiling = arithmetic_ceiling(plan, *instruction, ceilings);
      const double least = std::max(static_cast<double>(instruction->flops) / ceiling,
                                    static_cast<double>(instruction->bytes) / ceilings.bytes);
      const bool derived = instruction->seconds == 0;
      columns["label"].push_back(strings.index(instruction->label));
      columns["kernel"].push_back(strings.index(kernel_text(plan, *instruction)));
      columns["op"].push_back(strings.index(fb::EnumNameOp(instruction->op.type)));
      columns["flops"].push_back(instruction->flops);
      columns["bytes"].push_back(instruction->bytes);
      columns["seconds"].push_back(rounded(derived ? least : instruction->seconds));
      columns["derived"].push_back(derived ? 1 : 0);
      columns["recompute"].push_back(instruction->recompute ? 1 : 0);
      columns["ceiling"].push_back(ceiling);
      columns["inputs"].push_back(present(instruction->inputs));
      columns["outputs"].push_back(present(instruction->outputs));
    }
  return columns;
}

Json buffers(const fb::PlanT& plan, StringTable& strings) {
  Json columns;
  for (const auto& buffer : plan.buffers) {
    columns["name"].push_back(strings.index(buffer->name));
    columns["kind"].push_back(strings.index(fb::EnumNameBufferKind(buffer->kind)));
    columns["arena"].push_back(strings.index(fb::EnumNameArenaKind(buffer->arena)));
    columns["offset"].push_back(buffer->offset);
    columns["size"].push_back(buffer->size);
    columns["program"].push_back(buffer->program);
    columns["first"].push_back(buffer->first);
    columns["last"].push_back(buffer->last);
  }
  return columns;
}

Json tensors(const fb::PlanT& plan, StringTable& strings) {
  Json columns;
  for (const auto& tensor : plan.tensors) {
    columns["name"].push_back(strings.index(tensor->name));
    columns["type"].push_back(strings.index(dtype_name(tensor->dtype) + shape_text(*tensor)));
    columns["buffer"].push_back(tensor->buffer);
  }
  return columns;
}

/// Type of the first output of every node in the order of the plan: of the tensor "<node>", or, where a node
/// has several outputs, of the first "<node>.<output>".
std::map<std::string, std::string> output_types(const fb::PlanT& plan) {
  std::map<std::string, std::string> types;
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions) {
      if (instruction->label.ends_with(".backward")) continue;
      for (const int output : instruction->outputs) {
        if (output < 0 || plan.buffers[plan.tensors[output]->buffer]->program < 0) continue;
        const fb::TensorT& tensor = *plan.tensors[output];
        const std::string type = dtype_name(tensor.dtype) + shape_text(tensor);
        types.try_emplace(tensor.name, type);
        types.try_emplace(tensor.name.substr(0, tensor.name.rfind('.')), type);
      }
    }
  return types;
}

/// The blocks as the spec has them, a repeated one once, with the types of its first repetition. A node whose
/// value no instruction writes, since it became part of another, has no type.
Json blocks(const fb::PlanT& plan) {
  const std::map<std::string, std::string> types = output_types(plan);
  std::map<std::string, std::string> parameters;
  for (const auto& parameter : plan.parameters) {
    const size_t dot = parameter->name.rfind('.');
    if (dot == std::string::npos || parameter->param < 0) continue;
    std::string& text = parameters[parameter->name.substr(0, dot)];
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", parameter->name.substr(dot + 1),
                        shape_text(*plan.tensors[parameter->param]));
  }
  Json list = Json::array();
  for (const auto& block : plan.model->blocks) {
    const std::string prefix = block->name + (block->repeat > 1 ? ".0." : ".");
    Json nodes = Json::array(), carry = Json::array();
    for (const auto& pair : block->carry) carry.push_back({pair->from, pair->to});
    for (const auto& node : block->nodes) {
      const std::string value = prefix + node->name;
      const auto type = types.find(value);
      nodes.push_back({{"name", node->name},
                       {"op", fb::EnumNameOp(node->op.type)},
                       {"inputs", node->inputs},
                       {"type", type == types.end() ? "" : type->second},
                       {"parameters", parameters[value]}});
    }
    list.push_back({{"name", block->name},
                    {"repeat", block->repeat},
                    {"carry", std::move(carry)},
                    {"nodes", std::move(nodes)}});
  }
  return list;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

}  // namespace

std::string report_data(const fb::PlanT& plan) {
  StringTable strings;
  const Ceilings& ceilings = ceilings_of(plan);
  Json data = {{"header", header(plan)},
               {"ceilings", {{"device", ceilings.device}, {"bytes", ceilings.bytes}}},
               {"programs", programs(plan)},
               {"instructions", instructions(plan, ceilings, strings)},
               {"buffers", buffers(plan, strings)},
               {"tensors", tensors(plan, strings)},
               {"blocks", blocks(plan)}};
  data["strings"] = strings.json();
  std::string text = data.dump(-1, ' ', false, Json::error_handler_t::replace);
  replace_all(text, "<", "\\u003c");  // in JSON it stands within strings only
  return text;
}

}  // namespace moec::tools
