#include "compiler/check_heads.h"

#include <tuple>

#include "compiler/rewriter.h"

namespace moec {
namespace {

/// Query heads, key/value heads, head_dim.
using Heads = std::tuple<uint32_t, uint32_t, uint32_t>;

template <class Attrs>
Heads heads_of(const Attrs& attrs) {
  return {attrs.heads, attrs.kv_heads, attrs.head_dim};
}

Heads heads_of(const Node& node) {
  return is(node, "rope") ? heads_of(*node.attrs.AsRope()) : heads_of(*node.attrs.AsAttention());
}

std::string text(const Heads& heads) {
  const auto& [queries, kv, dim] = heads;
  return fmt::format("heads {}, kv_heads {}, head_dim {}", queries, kv, dim);
}

}  // namespace

void check_heads(const Graph& graph) {
  for (const Node& node : graph.nodes()) {
    if (!is(node, "rope") && !is(node, "attention")) continue;
    const int from = graph.value(node.inputs[0]).producer;
    if (from == kNoNode) continue;
    const Node& rope = graph.nodes()[static_cast<size_t>(from)];
    if (is(rope, "rope") && heads_of(rope) != heads_of(node))
      compile_error("{} ({}): has {}, but takes its qkv from {} ({}), which has {}", node.label,
                    node.def->key, text(heads_of(node)), rope.label, rope.def->key, text(heads_of(rope)));
  }
}

}  // namespace moec
