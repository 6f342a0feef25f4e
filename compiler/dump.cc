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

}  // namespace moec
