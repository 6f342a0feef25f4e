#include "compiler/fuse_rope.h"

namespace moec {

bool linear_then_rope(Rewriter& graph, int at) {
  const Node& rope = graph.node(at);
  if (!is(rope, "rope")) return false;
  const int from = graph.producer_for_one(rope.inputs[0]);
  if (from == kNoNode || !is(graph.node(from), "linear") || graph.node(from).attrs.AsLinear()->full_precision)
    return false;
  Node fused = graph.node(from);
  fused.def = &find_op("linear_rope");
  fused.attrs = rope.attrs;
  fused.outputs = rope.outputs;
  return graph.merge(at, from, std::move(fused));
}

bool attention_gradient_then_rope(Rewriter& graph, int at) {
  const Node& rope = graph.node(at);
  if (!is(rope, "rope_bwd")) return false;
  const int from = graph.producer_for_one(rope.inputs[0]);
  if (from == kNoNode || !is(graph.node(from), "attention_bwd")) return false;
  Node fused = graph.node(from);  // of the same heads (check_heads)
  fused.def = &find_op("attention_bwd_rope");
  fused.attrs = rope.attrs;
  fused.outputs = rope.outputs;
  return graph.merge(at, from, std::move(fused));
}

}  // namespace moec
