#include "compiler/fuse.h"

#include <algorithm>

#include "compiler/fuse_linear.h"
#include "compiler/fuse_norm.h"
#include "compiler/fuse_rope.h"
#include "compiler/rewriter.h"

namespace moec {
namespace {

/// The optional operand that a kernel adds to its first output, -1 where it has none.
int residual_input(const KernelInfo& kernel) {
  return std::max(kernel.input_index("residual"), kernel.input_index("dresidual"));
}

/// y = op(...); z = add(r, y)  ->  z = op(..., residual = r), for the ops that take one.
bool add_residual(Rewriter& graph, int at) {
  const Node& add = graph.node(at);
  if (!is(add, "add")) return false;
  for (const int branch : {1, 0}) {  // models and autodiff name what comes last second
    const ValueId y = add.inputs[static_cast<size_t>(branch)];
    const int op = graph.producer_for_one(y);
    if (op == kNoNode || graph.node(op).outputs[0] != y) continue;
    const int residual = residual_input(graph.node(op).def->kernel());
    if (residual < 0 || graph.node(op).inputs[static_cast<size_t>(residual)] != kNoValue) continue;
    Node fused = graph.node(op);
    fused.inputs[static_cast<size_t>(residual)] = add.inputs[static_cast<size_t>(1 - branch)];
    fused.outputs[0] = add.outputs[0];
    // Where the add was, if what is added comes later than the op.
    if (graph.merge(at, op, fused) || graph.merge(op, at, std::move(fused))) return true;
  }
  return false;
}

fb::OpUnion fused_norm(float eps) {
  fb::FusedNormT attrs;
  attrs.eps = eps;
  return make_attrs(attrs);
}

/// sum = add(a, b); y, ... = norm(sum, ...)  ->  sum, y, ... = add_norm(a, b, ...).
bool add_then_norm(Rewriter& graph, int at) {
  const Node& norm = graph.node(at);
  const bool rms = is(norm, "rmsnorm");
  if (!rms && !is(norm, "layernorm")) return false;
  const ValueId sum = norm.inputs[0];
  const int from = graph.producer(sum);
  if (from == kNoNode || !is(graph.node(from), "add")) return false;
  const Node& add = graph.node(from);
  Node fused = norm;
  fused.def = &find_op(rms ? "add_rmsnorm" : "add_layernorm");
  fused.attrs = fused_norm(rms ? norm.attrs.AsRmsNorm()->eps : norm.attrs.AsLayerNorm()->eps);
  fused.inputs.erase(fused.inputs.begin());
  fused.inputs.insert(fused.inputs.begin(), add.inputs.begin(), add.inputs.end());
  fused.outputs.insert(fused.outputs.begin(), sum);
  return graph.merge(from, at, std::move(fused));
}

// Operands of fused_embedding (kernels/catalog.def).
constexpr size_t kEmbeddingState = 3, kEmbeddingInputs = 4;

/// x = embedding(...); y = position_embedding(x, ...)  ->  y = fused_embedding(...).
bool embedding_then_positions(Rewriter& graph, int at) {
  const Node& positions = graph.node(at);
  if (!is(positions, "position_embedding")) return false;
  const int from = graph.producer_for_one(positions.inputs[0]);
  if (from == kNoNode || !is(graph.node(from), "embedding")) return false;
  Node fused = graph.node(from);
  fused.def = &find_op("fused_embedding");
  fused.attrs = make_attrs<fb::DropoutT>();
  fused.attrs.AsDropout()->p = 0;
  fused.inputs.push_back(positions.inputs[1]);
  fused.inputs.resize(kEmbeddingInputs, kNoValue);
  fused.outputs = positions.outputs;
  return graph.merge(from, at, std::move(fused));
}

/// x = fused_embedding(...); y = dropout(x)  ->  y = fused_embedding(..., state).
bool embedding_then_dropout(Rewriter& graph, int at) {
  const Node& dropout = graph.node(at);
  if (!is(dropout, "dropout")) return false;
  const int from = graph.producer_for_one(dropout.inputs[0]);
  if (from == kNoNode || !is(graph.node(from), "fused_embedding")) return false;
  Node fused = graph.node(from);
  if (fused.inputs[kEmbeddingState] != kNoValue) return false;
  fused.attrs = dropout.attrs;
  fused.inputs[kEmbeddingState] = dropout.inputs[1];
  fused.outputs = dropout.outputs;
  return graph.merge(from, at, std::move(fused));
}

/// loss, lse = cross_entropy(logits, ...); dlogits = cross_entropy_bwd(dloss, logits, ..., lse)  ->
/// loss, dlogits = cross_entropy_gradient(logits, ..., dloss).
bool loss_and_gradient(Rewriter& graph, int at) {
  const Node& gradient = graph.node(at);
  if (!is(gradient, "cross_entropy_bwd")) return false;
  const int from = graph.producer_for_one(gradient.inputs[3]);
  if (from == kNoNode || !is(graph.node(from), "cross_entropy")) return false;
  Node fused = graph.node(from);
  fused.def = &find_op("cross_entropy_gradient");
  fused.phase = gradient.phase;
  fused.inputs.push_back(gradient.inputs[0]);
  fused.outputs[1] = gradient.outputs[0];
  return graph.merge(from, at, std::move(fused));
}

/// In the order in which they are tried on the whole program.
constexpr RewriteRule kRules[] = {embedding_then_positions,
                                  embedding_then_dropout,
                                  linear_then_activation,
                                  linear_then_dropout,
                                  linear_then_rope,
                                  add_residual,
                                  add_then_norm,
                                  norm_gradient_then_dropout,
                                  linear_gradient_then_activation,
                                  linear_parameter_gradients,
                                  attention_gradient_then_rope,
                                  loss_and_gradient};

}  // namespace

void fuse(Graph& graph) {
  fuse_head(graph);
  fuse_moe(graph);
  split_norm_gradients(graph);
  Rewriter rewriter(graph);
  for (const RewriteRule rule : kRules)
    for (int at = 0; at < rewriter.size(); ++at)
      if (!rewriter.gone(at)) rule(rewriter, at);
  graph.replace_nodes(std::move(rewriter).finish());
}

}  // namespace moec
