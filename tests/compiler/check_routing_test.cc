// Models whose routing does not belong together are refused by name.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <string>

#include "compiler/compile.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

/// What the compiler says of moe-tiny once `change` has been made to the node of this name; "" if nothing.
std::string refusal(const std::string& name, const std::function<void(fb::NodeT&)>& change) {
  fb::ModelT model = example_model("moe-tiny");
  for (const auto& block : model.blocks)
    for (const auto& node : block->nodes)
      if (node->name == name) change(*node);
  for (const auto& block : model.blocks)  // it compares the numbers of experts, too
    std::erase_if(block->nodes, [](const auto& node) { return node->name == "aux_loss"; });
  try {
    compile(model);
  } catch (const CompileError& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("routing that is none, or of other rows, is refused") {
  CHECK(refusal("gate", [](fb::NodeT&) {}) == "");
  const std::string experts = refusal("gate", [](fb::NodeT& node) { node.op.AsLinear()->out_features *= 2; });
  CHECK(has(experts, "block.0.index (expert_index)"));
  CHECK(has(experts, "its router chooses among"));
  const std::string combined = refusal("combine", [](fb::NodeT& node) { node.inputs[3] = "index.offsets"; });
  CHECK(has(combined, "block.0.combine (combine): needs the routing of one ExpertIndex"));
  const std::string tokens = refusal("dispatch", [](fb::NodeT& node) { node.inputs[2] = "router.experts"; });
  CHECK(has(tokens, "block.0.dispatch (dispatch): needs the routing of one ExpertIndex"));
  const std::string index = refusal("index", [](fb::NodeT& node) { node.inputs[0] = "tokens"; });
  CHECK(has(index, "block.0.index (expert_index)"));
}

}  // namespace moec::test
