#include <doctest/doctest.h>

#include "compiler/fuse.h"
#include "compiler/op.h"
#include "compiler/recompute.h"

namespace moec::test {
namespace {

constexpr int64_t kRows = 12, kDim = 4, kHidden = 6, kExperts = 3;

/// Two linear layers of experts with a SwiGLU between, and what autodiff makes of them.
struct Experts {
  Graph graph{{}, kRows};
  ValueId offsets = input("offsets", {kExperts + 1}, fb::DType::I32);
  ValueId up = input("up", {kExperts, 2 * kHidden, kDim}), down = input("down", {kExperts, kDim, kHidden});
  ValueId h = kNoValue, y = kNoValue;

  ValueId input(const std::string& name, std::vector<int64_t> shape, fb::DType dtype = fb::DType::F32) {
    return graph.persistent(name, {dtype, std::move(shape)}, Role::kIo);
  }
  ValueId call(const char* key, fb::OpUnion attrs, std::vector<ValueId> inputs) {
    const int node = graph.add_node(find_op(key), attrs, key, std::move(inputs));
    return graph.nodes()[static_cast<size_t>(node)].outputs[0];
  }
  ValueId linear(const char* key, int64_t out, std::vector<ValueId> inputs) {
    fb::GroupedLinearT attrs;
    attrs.experts = kExperts;
    attrs.out_features = static_cast<uint32_t>(out);
    return call(key, make_attrs(attrs), std::move(inputs));
  }
  void forward() {
    h = linear("grouped_linear", 2 * kHidden, {input("x", {kRows, kDim}), offsets, up});
    y = call("swiglu", make_attrs<fb::SwigluT>(), {h});
    linear("grouped_linear", kDim, {y, offsets, down});
  }
  /// Returns the gradient of y.
  ValueId backward() {
    const ValueId dout = input("dout", {kRows, kDim});
    const ValueId dy = linear("grouped_linear_bwd_input", kDim, {dout, offsets, down});
    linear("grouped_linear_bwd_weight", kDim, {dout, y, offsets});
    const ValueId dh = call("swiglu_bwd", make_attrs<fb::SwigluT>(), {dy, h});
    linear("grouped_linear_bwd_input", 2 * kHidden, {dh, offsets, up});
    return dy;
  }

  std::vector<std::string_view> fused() {
    fuse_moe(graph);
    std::vector<std::string_view> keys;
    for (const Node& node : graph.nodes()) keys.push_back(node.def->key);
    return keys;
  }
};

using Keys = std::vector<std::string_view>;

}  // namespace

TEST_CASE("SwiGLU goes into the linear layer in front of it, which still writes gates and ups") {
  Experts e;
  e.forward();
  CHECK(e.fused() == Keys{"grouped_linear_swiglu", "grouped_linear"});
  CHECK(e.graph.nodes()[0].outputs == std::vector{e.h, e.y});
}

TEST_CASE("the gradient of SwiGLU goes into that of the layer behind, which makes the activation again") {
  Experts e;
  e.forward();
  e.backward();
  CHECK(e.fused() == Keys{"grouped_linear_swiglu", "grouped_linear", "grouped_linear_bwd_input_swiglu",
                          "grouped_linear_bwd_weight", "grouped_linear_bwd_input"});
  const Node &gradient = e.graph.nodes()[2], &weight = e.graph.nodes()[3];
  CHECK(gradient.inputs.back() == e.h);
  CHECK(weight.inputs[1] == gradient.outputs[1]);
  CHECK(gradient.outputs[1] != e.y);
}

TEST_CASE("the activation that is made again can be kept") {
  Experts e;
  e.forward();
  e.backward();
  const Keys keys = e.fused();
  CHECK(remade_activations(e.graph).size() == 1);
  const Graph kept = keep_activations(e.graph);
  CHECK(remade_activations(kept).empty());
  const Node &gradient = kept.nodes()[2], &weight = kept.nodes()[3];
  CHECK(gradient.def->key == keys[2]);
  CHECK(gradient.outputs[1] == kNoValue);
  CHECK(weight.inputs[1] == e.y);
}

TEST_CASE("a gradient that something else reads stays") {
  Experts e;
  e.forward();
  const ValueId dy = e.backward();
  e.call("scale", make_attrs<fb::ScaleT>(), {dy});
  CHECK(e.fused() == Keys{"grouped_linear_swiglu", "grouped_linear", "grouped_linear_bwd_input",
                          "grouped_linear_bwd_weight", "swiglu_bwd", "grouped_linear_bwd_input", "scale"});
}

}  // namespace moec::test
