#include "compiler/gradient_squares.h"

#include <algorithm>

#include "compiler/autodiff.h"
#include "compiler/rewriter.h"
#include "kernels/gradient_squares.h"

namespace moec {

std::string squares_name(const std::string& parameter) { return "squares." + parameter; }

void sum_gradient_squares(Graph& graph, std::vector<Parameter>& parameters, int64_t least_elements) {
  constexpr size_t kPrevious = 3, kSquares = 1;  // operands of grouped_linear_bwd_weight
  std::vector<Node> nodes = graph.nodes();
  for (Node& node : nodes) {
    if (!is(node, "grouped_linear_bwd_weight") || node.inputs[kPrevious] != kNoValue) continue;
    const Value gradient = graph.value(node.outputs[0]);
    if (gradient.role != Role::kGradient || gradient.type.elements() < least_elements) continue;
    if (graph.persistent(gradient.name, gradient.type, gradient.role) != node.outputs[0]) continue;
    const auto parameter = std::ranges::find_if(
        parameters, [&](const Parameter& p) { return gradient_name(p.name) == gradient.name; });
    if (parameter == parameters.end()) continue;
    const std::vector<int64_t>& shape = parameter->spec.shape;
    parameter->squares = {fb::DType::F64, squares_shape(shape[0], shape[1], shape[2])};
    node.outputs[kSquares] = graph.next_version(
        graph.persistent(squares_name(parameter->name), parameter->squares, Role::kGradient));
  }
  graph.replace_nodes(std::move(nodes));
}

}  // namespace moec
