// A program while rules rewrite it.
#pragma once

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "compiler/op.h"

namespace moec {

constexpr int kNoNode = -1;

/// Whether a node calls this kernel.
inline bool is(const Node& node, std::string_view key) { return node.def->key == key; }

/// The nodes of a program while rules rewrite them, by their index in the graph that was. A node that went
/// into another is gone.
class Rewriter {
 public:
  explicit Rewriter(const Graph& graph)
      : graph_(graph),
        nodes_(graph.nodes()),
        gone_(nodes_.size(), false),
        producer_(graph.values().size(), kNoNode),
        reads_(graph.values().size(), 0) {
    for (int i = 0; i < size(); ++i) enter(i);
  }

  int size() const { return static_cast<int>(nodes_.size()); }
  bool gone(int i) const { return gone_[static_cast<size_t>(i)]; }
  const Node& node(int i) const { return nodes_[static_cast<size_t>(i)]; }
  const Value& value(ValueId id) const { return graph_.value(id); }

  /// The node that writes an activation which is read once; kNoNode for other values.
  int producer_for_one(ValueId id) const {
    return is_activation(id) && reads_[static_cast<size_t>(id)] == 1 ? producer(id) : kNoNode;
  }
  /// The node that writes a value, kNoNode for what the program finds.
  int producer(ValueId id) const { return id == kNoValue ? kNoNode : producer_[static_cast<size_t>(id)]; }

  /// Puts `fused` in the place of node `into` and drops node `from`, unless a node between them needs to run
  /// before or after `from`. Returns whether it did.
  bool merge(int from, int into, Node fused) {
    const auto [first, last] = std::minmax(from, into);
    for (int i = first + 1; i < last; ++i)
      if (!gone(i) && !independent(node(i), node(from))) return false;
    for (const int old : {from, into})
      for (const ValueId id : node(old).inputs)
        if (id != kNoValue) --reads_[static_cast<size_t>(id)];
    gone_[static_cast<size_t>(from)] = true;
    nodes_[static_cast<size_t>(into)] = std::move(fused);
    enter(into);
    return true;
  }

  /// The nodes that are left, in order.
  std::vector<Node> finish() && {
    std::vector<Node> left;
    for (int i = 0; i < size(); ++i)
      if (!gone(i)) left.push_back(std::move(nodes_[static_cast<size_t>(i)]));
    return left;
  }

 private:
  bool is_activation(ValueId id) const { return id != kNoValue && value(id).role == Role::kActivation; }

  void enter(int i) {
    for (const ValueId id : node(i).inputs)
      if (id != kNoValue) ++reads_[static_cast<size_t>(id)];
    for (const ValueId id : node(i).outputs)
      if (id != kNoValue) producer_[static_cast<size_t>(id)] = i;
  }

  /// Whether two values are the same memory: versions of persistent memory share their name.
  bool same_memory(ValueId a, ValueId b) const {
    if (a == kNoValue || b == kNoValue) return false;
    return a == b || (!is_activation(a) && !is_activation(b) && value(a).name == value(b).name);
  }

  bool touches(const std::vector<ValueId>& a, const std::vector<ValueId>& b) const {
    return std::ranges::any_of(
        a, [&](ValueId x) { return std::ranges::any_of(b, [&](ValueId y) { return same_memory(x, y); }); });
  }

  /// Whether two nodes may run in either order.
  bool independent(const Node& a, const Node& b) const {
    return !touches(a.outputs, b.inputs) && !touches(a.inputs, b.outputs) && !touches(a.outputs, b.outputs);
  }

  const Graph& graph_;
  std::vector<Node> nodes_;
  std::vector<bool> gone_;
  std::vector<int> producer_;  // by value
  std::vector<int> reads_;     // by value
};

/// A rule rewrites what ends, or, of gradients, what begins with node `at`, and returns whether it did.
using RewriteRule = bool (*)(Rewriter& graph, int at);

}  // namespace moec
