#include "compiler/dump.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "compiler/op.h"

namespace moec {
namespace {

std::string value_text(const Graph& graph, ValueId id) {
  if (id == kNoValue) return "-";
  const Value& value = graph.value(id);
  return value.role == Role::kActivation ? fmt::format("%{} {}", id, value.name)
                                         : fmt::format("{}@{}", value.name, value.version);
}

std::string tensor_text(const fb::PlanT& plan, const fb::TensorT& tensor) {
  const fb::BufferT& buffer = *plan.buffers[tensor.buffer];
  return fmt::format("{}: {}[{}] {}+{}", tensor.name, dtype_name(tensor.dtype), fmt::join(tensor.shape, ","),
                     fb::EnumNameArenaKind(buffer.arena), buffer.offset + tensor.offset);
}

}  // namespace

std::string dump_graph(const Graph& graph) {
  std::string text;
  for (const Node& node : graph.nodes()) {
    std::vector<std::string> inputs, outputs;
    for (const ValueId id : node.inputs) inputs.push_back(value_text(graph, id));
    for (const ValueId id : node.outputs)
      if (id != kNoValue) outputs.push_back(value_text(graph, id) + ": " + graph.value(id).type.to_string());
    text += fmt::format("{} = {}({})\n", fmt::join(outputs, ", "), node.def->key, fmt::join(inputs, ", "));
  }
  return text;
}

std::string dump_program(const fb::PlanT& plan, const fb::ProgramT& program) {
  const auto operands = [&](const std::vector<int>& ids) {
    std::vector<std::string> texts;
    for (const int id : ids)
      texts.push_back(id < 0 ? "-" : tensor_text(plan, *plan.tensors[static_cast<size_t>(id)]));
    return fmt::format("{}", fmt::join(texts, ", "));
  };
  std::string text;
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    const fb::InstructionT& instruction = *program.instructions[i];
    text += fmt::format("{} {}: {} = {}({})", i, instruction.label, operands(instruction.outputs),
                        instruction.kernel, operands(instruction.inputs));
    if (instruction.workspace >= 0) text += fmt::format(" with {}", operands({instruction.workspace}));
    text += '\n';
  }
  return text;
}

}  // namespace moec
