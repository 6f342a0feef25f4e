#include "compiler/fuse_linear.h"

#include <optional>

namespace moec {
namespace {

// Operands of fused_linear (kernels/catalog.def).
enum Input { kResidual = 3, kState, kInputs };
enum Output { kResult, kPreactivation, kOutputs };

/// The linear layer that writes `y`, as a fused one whose result is not changed yet; nothing where there is
/// none.
std::optional<Node> unchanged_layer(const Rewriter& graph, int node) {
  if (node == kNoNode) return std::nullopt;
  Node layer = graph.node(node);
  if (!is(layer, "linear") || layer.attrs.AsLinear()->full_precision) return std::nullopt;
  layer.def = &find_op("fused_linear");
  layer.attrs = make_attrs<fb::FusedLinearT>();
  layer.inputs.resize(kInputs, kNoValue);
  layer.outputs.resize(kOutputs, kNoValue);
  return layer;
}

/// The same of a layer that may be followed by an activation.
std::optional<Node> layer_without_dropout(const Rewriter& graph, int node) {
  if (node == kNoNode || !is(graph.node(node), "fused_linear")) return unchanged_layer(graph, node);
  const Node& layer = graph.node(node);
  return layer.inputs[kResidual] == kNoValue && layer.inputs[kState] == kNoValue ? std::optional(layer)
                                                                                 : std::nullopt;
}

fb::Activation activation_of(const Node& node) {
  if (is(node, "silu") || is(node, "silu_bwd")) return fb::Activation::Silu;
  if (is(node, "gelu") || is(node, "gelu_bwd"))
    return node.attrs.AsGelu()->tanh ? fb::Activation::GeluTanh : fb::Activation::Gelu;
  return fb::Activation::None;
}

bool is_activation(const Node& node) { return is(node, "silu") || is(node, "gelu"); }
bool is_activation_gradient(const Node& node) { return is(node, "silu_bwd") || is(node, "gelu_bwd"); }

/// The node that comes with `at` from one backward rule and has this key, kNoNode when there is none.
int sibling(const Rewriter& graph, int at, std::string_view key) {
  for (int i = at + 1; i < graph.size(); ++i) {
    if (graph.gone(i)) continue;
    if (graph.node(i).label != graph.node(at).label) return kNoNode;
    if (is(graph.node(i), key) && graph.node(i).inputs[0] == graph.node(at).inputs[0]) return i;
  }
  return kNoNode;
}

}  // namespace

bool linear_then_activation(Rewriter& graph, int at) {
  const Node& activation = graph.node(at);
  if (!is_activation(activation)) return false;
  const ValueId z = activation.inputs[0];
  const int from = graph.producer(z);
  std::optional<Node> layer = unchanged_layer(graph, from);
  if (!layer || layer->outputs[kResult] != z) return false;
  layer->attrs.AsFusedLinear()->activation = activation_of(activation);
  layer->outputs[kResult] = activation.outputs[0];
  layer->outputs[kPreactivation] = graph.producer_for_one(z) == kNoNode ? z : kNoValue;
  return graph.merge(at, from, std::move(*layer));
}

bool linear_then_dropout(Rewriter& graph, int at) {
  const Node& dropout = graph.node(at);
  if (!is(dropout, "dropout")) return false;
  const int from = graph.producer_for_one(dropout.inputs[0]);
  std::optional<Node> layer = layer_without_dropout(graph, from);
  if (!layer || layer->outputs[kResult] != dropout.inputs[0]) return false;
  const fb::DropoutT& attrs = *dropout.attrs.AsDropout();
  layer->attrs.AsFusedLinear()->dropout_p = attrs.p;
  layer->attrs.AsFusedLinear()->dropout_stream = attrs.stream;
  layer->inputs[kState] = dropout.inputs[1];
  layer->outputs[kResult] = dropout.outputs[0];
  return graph.merge(at, from, std::move(*layer));
}

bool linear_gradient_then_activation(Rewriter& graph, int at) {
  const Node& activation = graph.node(at);
  if (!is_activation_gradient(activation)) return false;
  const ValueId dx = activation.inputs[0], z = activation.inputs[1];
  const int from = graph.producer_for_one(dx);
  if (from == kNoNode || !is(graph.node(from), "linear_bwd_input") ||
      graph.value(dx).type != graph.value(z).type)
    return false;
  Node fused = graph.node(from);
  fb::FusedLinearT attrs;
  attrs.activation = activation_of(activation);
  fused.def = &find_op("fused_linear_bwd_input");
  fused.attrs = make_attrs(attrs);
  fused.inputs.push_back(z);
  fused.outputs = activation.outputs;
  return graph.merge(at, from, std::move(fused));
}

bool linear_parameter_gradients(Rewriter& graph, int at) {
  const Node& weight = graph.node(at);
  if (!is(weight, "linear_bwd_weight")) return false;
  const int bias = sibling(graph, at, "bias_bwd");
  if (bias == kNoNode) return false;
  Node fused = weight;
  fused.def = &find_op("linear_bwd_parameters");
  fused.inputs.push_back(graph.node(bias).inputs[1]);
  fused.outputs.push_back(graph.node(bias).outputs[0]);
  return graph.merge(bias, at, std::move(fused));
}

}  // namespace moec
