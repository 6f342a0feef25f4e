// A Linear whose output only a CrossEntropy reads (the LM head), the loss, and the gradients of both become
// one linear_cross_entropy, so that logits never exist for all tokens at once.
#include <algorithm>
#include <set>

#include "compiler/fuse.h"
#include "compiler/rewriter.h"

namespace moec {
namespace {

using Index = size_t;

std::vector<Index> readers(const std::vector<Node>& nodes, ValueId value) {
  std::vector<Index> found;
  for (Index i = 0; i < nodes.size(); ++i)
    if (std::ranges::find(nodes[i].inputs, value) != nodes[i].inputs.end()) found.push_back(i);
  return found;
}

/// The nodes that a head is made of; those of the gradients only where the program has them.
struct Head {
  Index linear, loss;
  bool trains = false;
  Index loss_bwd = 0, bwd_input = 0, bwd_weight = 0;

  /// Where the fused node stands: the first place at which all of its inputs are there.
  Index place() const { return trains ? loss_bwd : loss; }
  std::set<Index> all() const {
    std::set<Index> indices = {linear, loss};
    if (trains) indices.insert({loss_bwd, bwd_input, bwd_weight});
    return indices;
  }
};

/// Adds the gradient's nodes; false where something else reads the logits, their statistics or their
/// gradient.
bool find_gradients(const std::vector<Node>& nodes, Head& head) {
  const std::vector<Index> logits = readers(nodes, nodes[head.linear].outputs[0]);
  const std::vector<Index> lse = readers(nodes, nodes[head.loss].outputs[1]);
  if (logits.size() == 1) return lse.empty();
  if (logits.size() != 2 || lse != std::vector<Index>{logits[1]}) return false;
  head.loss_bwd = logits[1];
  if (!is(nodes[head.loss_bwd], "cross_entropy_bwd")) return false;
  const std::vector<Index> dlogits = readers(nodes, nodes[head.loss_bwd].outputs[0]);
  if (dlogits.size() != 2 || !is(nodes[dlogits[0]], "linear_bwd_input") ||
      !is(nodes[dlogits[1]], "linear_bwd_weight"))
    return false;
  head.bwd_input = dlogits[0];
  head.bwd_weight = dlogits[1];
  head.trains = true;
  return true;
}

/// Whether nothing but the head touches, in front of its place, what it will make there, and its inputs are
/// made before.
bool can_move(const Graph& graph, const Head& head) {
  const std::vector<Node>& nodes = graph.nodes();
  for (const Index reader : readers(nodes, nodes[head.loss].outputs[0]))
    if (reader < head.place()) return false;
  if (!head.trains) return true;
  const ValueId previous = nodes[head.bwd_weight].inputs[2];
  return previous == kNoValue || graph.value(previous).producer < static_cast<int>(head.place());
}

Node fused_node(const std::vector<Node>& nodes, const Head& head) {
  const Node &linear = nodes[head.linear], &loss = nodes[head.loss];
  Node fused = nodes[head.place()];
  fused.def = &find_op("linear_cross_entropy");
  fused.attrs = loss.attrs;
  fused.label = loss.label;
  fused.inputs = {linear.inputs[0], linear.inputs[1], loss.inputs[1], kNoValue, kNoValue};
  fused.outputs = {loss.outputs[0], kNoValue, kNoValue};
  if (head.trains) {
    fused.inputs[3] = nodes[head.loss_bwd].inputs[0];
    fused.inputs[4] = nodes[head.bwd_weight].inputs[2];
    fused.outputs[1] = nodes[head.bwd_input].outputs[0];
    fused.outputs[2] = nodes[head.bwd_weight].outputs[0];
  }
  return fused;
}

bool fuse_one(Graph& graph, Index loss) {
  const std::vector<Node>& nodes = graph.nodes();
  if (!is(nodes[loss], "cross_entropy")) return false;
  const int producer = graph.value(nodes[loss].inputs[0]).producer;
  if (producer < 0) return false;
  Head head = {.linear = static_cast<Index>(producer), .loss = loss};
  const Node& linear = nodes[head.linear];
  if (!is(linear, "linear") || linear.inputs[2] != kNoValue || linear.attrs.AsLinear()->full_precision)
    return false;
  if (!find_gradients(nodes, head) || !can_move(graph, head)) return false;

  std::vector<Node> rewritten;
  const std::set<Index> all = head.all();
  for (Index i = 0; i < nodes.size(); ++i) {
    if (i == head.place()) rewritten.push_back(fused_node(nodes, head));
    if (!all.contains(i)) rewritten.push_back(nodes[i]);
  }
  graph.replace_nodes(std::move(rewritten));
  return true;
}

}  // namespace

void fuse_head(Graph& graph) {
  for (Index i = graph.nodes().size(); i-- > 0;)
    if (i < graph.nodes().size()) fuse_one(graph, i);
}

}  // namespace moec
