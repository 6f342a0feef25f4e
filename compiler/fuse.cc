#include "compiler/fuse.h"

#include <algorithm>

#include "compiler/fuse_linear.h"
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
    if (graph.merge(at, op, std::move(fused))) return true;
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

/// In the order in which they are tried on the whole program.
constexpr RewriteRule kRules[] = {
    linear_then_activation,          linear_then_dropout,       add_residual, add_then_norm,
    linear_gradient_then_activation, linear_parameter_gradients};

}  // namespace

void fuse(Graph& graph) {
  fuse_head(graph);
  fuse_moe(graph);
  Rewriter rewriter(graph);
  for (const RewriteRule rule : kRules)
    for (int at = 0; at < rewriter.size(); ++at)
      if (!rewriter.gone(at)) rule(rewriter, at);
  graph.replace_nodes(std::move(rewriter).finish());
}

}  // namespace moec
