#include "compiler/fuse_norm.h"

#include <algorithm>
#include <set>
#include <vector>

#include "kernels/workspace.h"

namespace moec {
namespace {

/// Rows from which on reading them once is worth more than two nodes.
constexpr int64_t kManyRows = 2048;

// Operands of norm_bwd_input (kernels/catalog.def).
constexpr size_t kState = 6;
enum Output { kDx, kDropped };

/// An operand of the gradient of a norm, kNoValue where it has none of that name.
ValueId operand(const Node& whole, const char* name) {
  const int i = whole.def->kernel().input_index(name);
  return i < 0 ? kNoValue : whole.inputs[static_cast<size_t>(i)];
}

ValueId dbias(const Node& whole) { return whole.outputs.size() > 2 ? whole.outputs[2] : kNoValue; }

Node part_of(const Node& whole, const char* key) {
  Node part = whole;
  part.def = &find_op(key);
  part.attrs = make_attrs<fb::FusedNormT>();
  return part;
}

/// Adds the two nodes that the gradient is made of where rows are few.
void add_parts(std::vector<Node>& nodes, const Node& whole) {
  const ValueId dy = operand(whole, "dy"), x = operand(whole, "x"), mean = operand(whole, "mean"),
                rstd = operand(whole, "rstd");
  Node parameters = part_of(whole, "norm_bwd_parameters"), input = part_of(whole, "norm_bwd_input");
  parameters.inputs = {dy, x, mean, rstd, operand(whole, "dweight_prev"), operand(whole, "dbias_prev")};
  parameters.outputs = {whole.outputs[1], dbias(whole)};
  input.inputs = {dy, x, operand(whole, "weight"), mean, rstd, operand(whole, "dresidual"), kNoValue};
  input.outputs = {whole.outputs[kDx], kNoValue};
  nodes.push_back(std::move(parameters));
  nodes.push_back(std::move(input));
}

/// Adds one pass over many rows, and the sums of what its pieces give.
void add_pass_and_sums(Graph& graph, std::vector<Node>& nodes, const Node& whole) {
  Node pass = part_of(whole, "norm_bwd_partials");
  pass.inputs.clear();
  for (const Operand& input : pass.def->kernel().inputs)
    pass.inputs.push_back(operand(whole, input.name.c_str()));
  const TensorType& dy = graph.value(pass.inputs[0]).type;
  const fb::DType sum = graph.precision().accumulator();
  const TensorType partials = {sum, {column_pieces(dy.rows(), dtype_size(sum)).count, dy.cols()}};
  const auto add_sum = [&](ValueId gradient, const char* name, const char* previous) {
    if (gradient == kNoValue) return kNoValue;
    Node& node = nodes.emplace_back(part_of(whole, "norm_bwd_sum"));
    const ValueId summed = graph.add_value(whole.label + "." + name, partials, Role::kActivation);
    node.inputs = {summed, operand(whole, previous)};
    node.outputs = {gradient};
    return summed;
  };
  const size_t at = nodes.size();
  const ValueId dweight = add_sum(whole.outputs[1], "dweight_partials", "dweight_prev");
  pass.outputs = {whole.outputs[kDx], dweight, add_sum(dbias(whole), "dbias_partials", "dbias_prev")};
  nodes.insert(nodes.begin() + static_cast<std::ptrdiff_t>(at), std::move(pass));
}

}  // namespace

void split_norm_gradients(Graph& graph) {
  std::vector<Node> nodes;
  for (const Node& node : graph.nodes()) {
    if (!is(node, "rmsnorm_bwd") && !is(node, "layernorm_bwd"))
      nodes.push_back(node);
    else if (graph.value(node.inputs[0]).type.rows() < kManyRows)
      add_parts(nodes, node);
    else
      add_pass_and_sums(graph, nodes, node);
  }
  graph.replace_nodes(std::move(nodes));
}

void sum_norm_gradients_last(Graph& graph) {
  std::vector<Node> staying, sums;
  std::set<ValueId> needed;
  std::vector<Node> nodes = graph.nodes();
  for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) {
    const bool moves = is(*node, "norm_bwd_sum") && !needed.contains(node->outputs[0]);
    if (!moves) needed.insert(node->inputs.begin(), node->inputs.end());
    (moves ? sums : staying).push_back(std::move(*node));
  }
  std::ranges::reverse(staying);
  staying.insert(staying.end(), sums.rbegin(), sums.rend());
  graph.replace_nodes(std::move(staying));
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
