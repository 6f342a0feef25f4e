#include "compiler/order.h"

#include <map>
#include <utility>

#include "compiler/memory_problem.h"
#include "planner/order.h"

namespace moec {
namespace {

bool writes_state(const Graph& graph, const Node& node) {
  for (const ValueId id : node.outputs)
    if (id != kNoValue && (graph.value(id).role == Role::kState || graph.value(id).role == Role::kIo))
      return true;
  return false;
}

/// Pairs of nodes whose order persistent memory fixes: reads between the writes before and after them, writes
/// one after the other.
class PersistentOrder {
 public:
  explicit PersistentOrder(const Graph& graph) : graph_(graph) {}

  std::vector<std::pair<int, int>> run() {
    for (int i = 0; i < static_cast<int>(graph_.nodes().size()); ++i) {
      const Node& node = graph_.nodes()[static_cast<size_t>(i)];
      for (const ValueId id : node.inputs) read(i, id);
      for (const ValueId id : node.outputs) write(i, id);
      if (writes_state(graph_, node)) {
        for (int other = after_ + 1; other < i; ++other) before_.emplace_back(other, i);
        after_ = i;
      }
      if (after_ >= 0 && after_ < i) before_.emplace_back(after_, i);
    }
    return std::move(before_);
  }

 private:
  struct Uses {
    int writer = -1;
    std::vector<int> readers;  // of what the writer wrote
  };

  bool is_persistent(ValueId id) const { return id != kNoValue && !is_activation(graph_, id); }

  void read(int i, ValueId id) {
    if (!is_persistent(id)) return;
    Uses& uses = uses_[graph_.value(id).name];
    if (uses.writer >= 0) before_.emplace_back(uses.writer, i);
    uses.readers.push_back(i);
  }

  void write(int i, ValueId id) {
    if (!is_persistent(id)) return;
    Uses& uses = uses_[graph_.value(id).name];
    if (uses.writer >= 0) before_.emplace_back(uses.writer, i);
    for (const int reader : uses.readers)
      if (reader != i) before_.emplace_back(reader, i);
    uses = {.writer = i, .readers = {}};
  }

  const Graph& graph_;
  std::map<std::string, Uses> uses_;
  int after_ = -1;  // the last node that wrote state: nothing moves across it
  std::vector<std::pair<int, int>> before_;
};

}  // namespace

Graph order_for_memory(const Graph& graph) {
  std::vector<Node> nodes;
  for (const int i : planner::order_steps(memory_problem(graph), PersistentOrder(graph).run()))
    nodes.push_back(graph.nodes()[static_cast<size_t>(i)]);
  Graph ordered = graph;
  ordered.replace_nodes(std::move(nodes));
  return ordered;
}

}  // namespace moec
