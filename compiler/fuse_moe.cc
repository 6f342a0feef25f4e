// The SwiGLU of experts goes into their linear layers. Forward, the product that makes h = (gate, up) also
// makes y = silu(gate) * up. Backward, the product that makes the gradient of y turns it into that of h at
// once, and makes y again for the weight gradient behind it: what a program keeps between the two is h alone,
// and y where a memory budget has room for it (recompute.h).
#include <algorithm>

#include "compiler/fuse.h"
#include "compiler/rewriter.h"

namespace moec {
namespace {

using Index = size_t;

/// The node of this key that writes `id`; nullptr when another does.
Node* producer(const Graph& graph, std::vector<Node>& nodes, ValueId id, std::string_view key) {
  const int index = graph.value(id).producer;
  return index >= 0 && is(nodes[static_cast<Index>(index)], key) ? &nodes[static_cast<Index>(index)]
                                                                 : nullptr;
}

/// Both rules change `nodes`, those of the graph, and return whether the node at `at` goes, as another now
/// makes its outputs.
///
/// h = grouped_linear(...); y = swiglu(h)  ->  h, y = grouped_linear_swiglu(...).
bool fuse_forward(Graph& graph, std::vector<Node>& nodes, Index at) {
  if (!is(nodes[at], "swiglu")) return false;
  Node* linear = producer(graph, nodes, nodes[at].inputs[0], "grouped_linear");
  if (linear == nullptr) return false;
  linear->def = &find_op("grouped_linear_swiglu");
  linear->outputs.push_back(nodes[at].outputs[0]);
  return true;
}

/// dy = grouped_linear_bwd_input(...); dh = swiglu_bwd(dy, h)  ->
/// dh, y = grouped_linear_bwd_input_swiglu(..., h), after which weight gradients read this y.
bool fuse_backward(Graph& graph, std::vector<Node>& nodes, Index at) {
  if (!is(nodes[at], "swiglu_bwd")) return false;
  const ValueId dy = nodes[at].inputs[0], h = nodes[at].inputs[1];
  Node* linear = producer(graph, nodes, dy, "grouped_linear_bwd_input");
  const Node* forward = producer(graph, nodes, h, "grouped_linear_swiglu");
  if (linear == nullptr || forward == nullptr) return false;
  const auto reads_dy = [&](const Node& node) { return std::ranges::count(node.inputs, dy) > 0; };
  if (std::ranges::count_if(nodes, reads_dy) != 1) return false;
  const ValueId saved = forward->outputs[1];
  const Value y = graph.value(saved);
  const ValueId again = graph.add_value(y.name + ".again", y.type, y.role);
  linear->def = &find_op("grouped_linear_bwd_input_swiglu");
  linear->inputs.push_back(h);
  linear->outputs = {nodes[at].outputs[0], again};
  for (auto node = nodes.begin() + (linear - nodes.data()); node != nodes.end(); ++node)
    if (is(*node, "grouped_linear_bwd_weight")) std::ranges::replace(node->inputs, saved, again);
  return true;
}

}  // namespace

void fuse_moe(Graph& graph) {
  for (const auto rule : {fuse_forward, fuse_backward}) {
    std::vector<Node> nodes = graph.nodes(), kept;
    std::vector<bool> gone(nodes.size());
    for (Index at = 0; at < nodes.size(); ++at) gone[at] = rule(graph, nodes, at);
    for (Index at = 0; at < nodes.size(); ++at)
      if (!gone[at]) kept.push_back(std::move(nodes[at]));
    graph.replace_nodes(std::move(kept));
  }
}

}  // namespace moec
