#include "compiler/check_routing.h"

#include "compiler/rewriter.h"

namespace moec {
namespace {

constexpr size_t kExperts = 1, kProbs = 2;                      // outputs of router
constexpr size_t kOffsets = 0, kPermutation = 1, kInverse = 2;  // outputs of expert_index

class RoutingCheck {
 public:
  explicit RoutingCheck(const Graph& graph) : graph_(graph), index_of_rows_(graph.values().size(), kNoNode) {}

  void run() {
    for (const Node& node : graph_.nodes()) {
      if (is(node, "expert_index"))
        check_index(node);
      else if (is(node, "dispatch"))
        rows_are_of(node, same_index(node, {{1, kPermutation}, {2, kInverse}}));
      else if (is(node, "grouped_linear"))
        rows_are_of(node, check_rows(node, same_index(node, {{1, kOffsets}})));
      else if (is(node, "combine"))
        check_rows(node, same_index(node, {{2, kInverse}, {3, kPermutation}}));
      else if (is(node, "aux_loss"))
        same_index(node, {{1, kOffsets}});
      else
        pass_on(node);
    }
  }

 private:
  /// An input of a node, and which output of expert_index it has to be.
  struct Wanted {
    size_t input, output;
  };

  [[noreturn]] static void fail(const Node& node, const char* message) {
    compile_error("{} ({}): {}", node.label, node.def->key, message);
  }

  /// The node of this key whose output number `output` the value is; kNoNode for other values.
  int maker(ValueId id, std::string_view key, size_t output) const {
    const int index = id == kNoValue ? kNoNode : graph_.value(id).producer;
    if (index == kNoNode) return kNoNode;
    const Node& node = graph_.nodes()[static_cast<size_t>(index)];
    return is(node, key) && node.outputs[output] == id ? index : kNoNode;
  }

  void check_index(const Node& node) const {
    const int router = maker(node.inputs[0], "router", kExperts);
    if (router == kNoNode) fail(node, "needs the experts that a Router has chosen");
    const auto experts =
        static_cast<int64_t>(static_cast<const fb::ExpertIndexT*>(node.attrs.value)->experts);
    const int64_t routed =
        graph_.value(graph_.nodes()[static_cast<size_t>(router)].outputs[kProbs]).type.cols();
    if (experts != routed)
      compile_error("{} ({}): has {} experts, its router chooses among {}", node.label, node.def->key,
                    experts, routed);
  }

  /// The expert_index of which all these inputs are.
  int same_index(const Node& node, std::initializer_list<Wanted> wanted) const {
    int index = kNoNode;
    for (const auto [input, output] : wanted) {
      const int made = maker(node.inputs[input], "expert_index", output);
      if (made == kNoNode || (index != kNoNode && index != made))
        fail(node, "needs the routing of one ExpertIndex");
      index = made;
    }
    return index;
  }

  int check_rows(const Node& node, int index) const {
    const int rows = index_of_rows_[static_cast<size_t>(node.inputs[0])];
    if (rows != index) fail(node, "needs rows that were dispatched by the ExpertIndex whose routing it has");
    return index;
  }

  void rows_are_of(const Node& node, int index) {
    index_of_rows_[static_cast<size_t>(node.outputs[0])] = index;
  }

  /// What is computed of rows, row by row, has their routing.
  void pass_on(const Node& node) {
    int index = kNoNode;
    for (const ValueId input : node.inputs) {
      const int rows = input == kNoValue ? kNoNode : index_of_rows_[static_cast<size_t>(input)];
      if (rows == kNoNode) continue;
      if (index != kNoNode && index != rows) fail(node, "takes rows that two ExpertIndexes have dispatched");
      index = rows;
    }
    if (index != kNoNode) rows_are_of(node, index);
  }

  const Graph& graph_;
  std::vector<int> index_of_rows_;  // by value: the expert_index that its rows were dispatched by
};

}  // namespace

void check_routing(const Graph& graph) { RoutingCheck(graph).run(); }

}  // namespace moec
