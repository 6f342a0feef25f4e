#include "compiler/memory_problem.h"

#include <algorithm>

#include "compiler/op.h"

namespace moec {
namespace {

TensorView shape_view(const Graph& graph, ValueId id) {
  TensorView view;
  if (id == kNoValue) return view;
  const TensorType& type = graph.value(id).type;
  view.dtype = type.dtype;
  view.rank = static_cast<int>(type.shape.size());
  std::copy(type.shape.begin(), type.shape.end(), view.shape.begin());
  return view;
}

planner::Step make_step(const Graph& graph, const Node& node) {
  planner::Step step;
  step.workspace = node.def->kernel().workspace(shapes_of(graph, node));
  for (const ValueId id : node.inputs)
    if (is_activation(graph, id)) step.reads.push_back(id);
  for (const ValueId id : node.outputs)
    if (is_activation(graph, id)) step.writes.push_back(id);
  for (const InPlace& pair : node.def->kernel().in_place) {
    const ValueId out = node.outputs[static_cast<size_t>(pair.output)],
                  in = node.inputs[static_cast<size_t>(pair.input)];
    if (is_activation(graph, out) && is_activation(graph, in))
      step.shares.push_back({out, in, pair.required});
  }
  return step;
}

}  // namespace

bool is_activation(const Graph& graph, ValueId id) {
  return id != kNoValue && graph.value(id).role == Role::kActivation;
}

KernelCall shapes_of(const Graph& graph, const Node& node) {
  KernelCall call;
  call.op = &node.attrs;
  for (const ValueId id : node.inputs) call.inputs.push_back(shape_view(graph, id));
  for (const ValueId id : node.outputs) call.outputs.push_back(shape_view(graph, id));
  return call;
}

planner::Problem memory_problem(const Graph& graph) {
  planner::Problem problem;
  for (const Value& value : graph.values())
    problem.sizes.push_back(static_cast<uint64_t>(value.type.bytes()));
  for (const Node& node : graph.nodes()) problem.steps.push_back(make_step(graph, node));
  return problem;
}

uint64_t activation_bytes(const Graph& graph) { return planner::plan_memory(memory_problem(graph)).peak; }

}  // namespace moec
