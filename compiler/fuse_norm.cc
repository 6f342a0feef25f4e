#include "compiler/fuse_norm.h"

namespace moec {
namespace {

/// Rows from which on reading them once is worth more than two nodes.
constexpr int64_t kManyRows = 2048;

// Operands of norm_bwd_input (kernels/catalog.def).
constexpr size_t kState = 6;
enum Output { kDx, kDropped };

/// The two nodes that a norm's gradient is made of, at the end of `nodes`.
void add_parts(std::vector<Node>& nodes, const Node& whole) {
  const KernelInfo& kernel = whole.def->kernel();
  const auto operand = [&](const char* name) {
    const int i = kernel.input_index(name);
    return i < 0 ? kNoValue : whole.inputs[static_cast<size_t>(i)];
  };
  const ValueId dy = operand("dy"), x = operand("x"), mean = operand("mean"), rstd = operand("rstd");
  Node parameters = whole, input = whole;
  parameters.def = &find_op("norm_bwd_parameters");
  input.def = &find_op("norm_bwd_input");
  parameters.attrs = input.attrs = make_attrs<fb::FusedNormT>();
  parameters.inputs = {dy, x, mean, rstd, operand("dweight_prev"), operand("dbias_prev")};
  parameters.outputs = {whole.outputs[1], whole.outputs.size() > 2 ? whole.outputs[2] : kNoValue};
  input.inputs = {dy, x, operand("weight"), mean, rstd, operand("dresidual"), kNoValue};
  input.outputs = {whole.outputs[kDx], kNoValue};
  nodes.push_back(std::move(parameters));
  nodes.push_back(std::move(input));
}

}  // namespace

void split_norm_gradients(Graph& graph) {
  std::vector<Node> nodes;
  for (const Node& node : graph.nodes()) {
    const bool gradient = is(node, "rmsnorm_bwd") || is(node, "layernorm_bwd");
    if (gradient && graph.value(node.inputs[0]).type.rows() < kManyRows)
      add_parts(nodes, node);
    else
      nodes.push_back(node);
  }
  graph.replace_nodes(std::move(nodes));
}

bool norm_gradient_then_dropout(Rewriter& graph, int at) {
  const Node& dropout = graph.node(at);
  if (!is(dropout, "dropout")) return false;
  const ValueId dx = dropout.inputs[0];
  const int from = graph.producer(dx);
  if (from == kNoNode || !is(graph.node(from), "norm_bwd_input")) return false;
  Node fused = graph.node(from);
  if (fused.outputs[kDropped] != kNoValue) return false;
  const fb::DropoutT& attrs = *dropout.attrs.AsDropout();
  fused.attrs.AsFusedNorm()->dropout_p = attrs.p;
  fused.attrs.AsFusedNorm()->dropout_stream = attrs.stream;
  fused.inputs[kState] = dropout.inputs[1];
  fused.outputs[kDropped] = dropout.outputs[0];
  if (graph.producer_for_one(dx) == from) fused.outputs[kDx] = kNoValue;
  return graph.merge(at, from, std::move(fused));
}

}  // namespace moec
