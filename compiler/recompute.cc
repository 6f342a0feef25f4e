#include "compiler/recompute.h"

#include <algorithm>
#include <map>
#include <utility>

#include "compiler/memory_problem.h"
#include "compiler/op.h"

namespace moec {
namespace {

/// The last version of persistent memory that is written before the last node, by name.
std::map<std::string, int> final_versions(const Graph& graph) {
  std::map<std::string, int> versions;
  for (size_t i = 0; i + 1 < graph.nodes().size(); ++i)
    for (const ValueId id : graph.nodes()[i].outputs)
      if (id != kNoValue && !is_activation(graph, id))
        versions[graph.value(id).name] = std::max(versions[graph.value(id).name], graph.value(id).version);
  return versions;
}

bool is_repeatable(const Graph& graph, const Node& node, const std::map<std::string, int>& final) {
  const auto stays = [&](ValueId id) {
    if (id == kNoValue || is_activation(graph, id)) return true;
    const auto it = final.find(graph.value(id).name);
    return it == final.end() || it->second == graph.value(id).version;
  };
  const auto is_temporary = [&](ValueId id) { return id == kNoValue || is_activation(graph, id); };
  return node.phase == Phase::kForward && std::ranges::all_of(node.outputs, is_temporary) &&
         std::ranges::all_of(node.inputs, stays);
}

/// Of `kept`, which is `program` with everything kept.
planner::RecomputeProblem make_problem(const Graph& kept, const Graph& program, const CostModel& costs) {
  planner::RecomputeProblem problem{.memory = memory_problem(kept)};
  const auto final = final_versions(kept);
  for (const Node& node : kept.nodes()) {
    problem.seconds.push_back(costs.seconds(kept, node));
    problem.repeatable.push_back(is_repeatable(kept, node, final));
    problem.turn += node.phase == Phase::kForward;
  }
  const planner::Problem remaking = memory_problem(program);
  for (const auto& [node, value, again] : remade_activations(program))
    problem.remakes.push_back(
        {.step = static_cast<int>(node),
         .value = value,
         .again = again,
         .instead = remaking.steps[node],
         .seconds = std::max(0.0, costs.seconds(program, program.nodes()[node]) - problem.seconds[node])});
  return problem;
}

}  // namespace

std::vector<Remade> remade_activations(const Graph& program) {
  constexpr size_t kGatesAndUps = 3;  // of the product's inputs
  std::vector<Remade> found;
  for (size_t i = 0; i < program.nodes().size(); ++i) {
    const Node& node = program.nodes()[i];
    if (node.def->key != "grouped_linear_bwd_input_swiglu" || node.outputs.back() == kNoValue) continue;
    const int forward = program.value(node.inputs[kGatesAndUps]).producer;
    found.push_back({.node = i,
                     .value = program.nodes()[static_cast<size_t>(forward)].outputs.back(),
                     .again = node.outputs.back()});
  }
  return found;
}

Graph keep_activations(const Graph& program) {
  std::vector<Node> nodes = program.nodes();
  for (const auto& [node, value, again] : remade_activations(program)) {
    nodes[node].outputs.back() = kNoValue;
    for (size_t i = node; i < nodes.size(); ++i) std::ranges::replace(nodes[i].inputs, again, value);
  }
  Graph kept = program;
  kept.replace_nodes(std::move(nodes));
  return kept;
}

Recompute::Recompute(Graph program, const CostModel& costs)
    : program_(std::move(program)),
      kept_(keep_activations(program_)),
      problem_(make_problem(kept_, program_, costs)),
      alternatives_(planner::recompute_alternatives(problem_)) {}

Graph Recompute::apply(const planner::Alternative& alternative) const {
  const planner::RepeatingProgram repeating = planner::repeat_dropped(problem_, alternative.choice);
  Graph graph = program_;
  std::vector<Node> nodes;
  std::vector<ValueId> value_of;  // per value of the repeating program
  for (ValueId id = 0; id < static_cast<ValueId>(program_.values().size()); ++id) value_of.push_back(id);
  for (size_t i = 0; i < repeating.step.size(); ++i) {
    const Graph& source = repeating.remake[i] ? program_ : kept_;
    Node node = source.nodes()[static_cast<size_t>(repeating.step[i])];
    const planner::Step& step = repeating.problem.steps[i];
    auto read = step.reads.begin(), written = step.writes.begin();
    for (ValueId& id : node.inputs)
      if (is_activation(program_, id)) id = value_of[static_cast<size_t>(*read++)];
    if (repeating.repeat[i]) {
      node.recompute = true;
      node.phase = Phase::kBackward;
      node.label += ".recompute";
    }
    for (ValueId& id : node.outputs) {
      if (!is_activation(program_, id)) continue;
      if (repeating.repeat[i]) {
        const Value original = program_.value(id);
        value_of.push_back(graph.add_value(original.name + ".recompute", original.type, original.role));
      }
      id = value_of[static_cast<size_t>(*written++)];
    }
    nodes.push_back(std::move(node));
  }
  graph.replace_nodes(std::move(nodes));
  return graph;
}

}  // namespace moec
