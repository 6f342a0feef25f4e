// The fuse pass: what it makes one op of, and what it leaves alone.
#include "compiler/fuse.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "compiler/error.h"
#include "compiler/fuse_norm.h"
#include "compiler/op.h"
#include "tests/support/op_harness.h"

namespace moec::test {
namespace {

const TensorType kType{fb::DType::F32, {4, 8}};

/// A graph of f32 values [4, 8] that a test adds nodes to.
struct Program {
  Graph graph{Precision{}, 4};

  ValueId input(const std::string& name) { return graph.persistent(name, kType, Role::kIo); }

  template <class Attrs>
  std::vector<ValueId> call(const char* key, Attrs attrs, std::vector<ValueId> inputs) {
    const int index = graph.add_node(find_op(key), make_attrs(std::move(attrs)), key, std::move(inputs), {});
    return graph.nodes()[static_cast<size_t>(index)].outputs;
  }
  ValueId add(ValueId a, ValueId b) { return call("add", fb::AddT{}, {a, b})[0]; }
  ValueId silu(ValueId x) { return call("silu", fb::SiluT{}, {x})[0]; }
  ValueId norm(ValueId x) { return call("rmsnorm", fb::RmsNormT{}, {x, weight()})[0]; }
  ValueId weight() { return graph.persistent("weight", {fb::DType::F32, {8}}, Role::kParameter); }
  ValueId norm_bwd(ValueId dy, ValueId x) {
    const ValueId rstd = graph.persistent("rstd", {fb::DType::F32, {4}}, Role::kIo);
    return call("rmsnorm_bwd", fb::RmsNormT{}, {dy, x, weight(), rstd})[0];
  }

  /// Keys of the nodes after the pass.
  std::vector<std::string_view> fused() {
    fuse(graph);
    std::vector<std::string_view> keys;
    for (const Node& node : graph.nodes()) keys.push_back(node.def->key);
    return keys;
  }
};

using Keys = std::vector<std::string_view>;

}  // namespace

TEST_CASE("a sum and its norm become one op, which writes the sum too") {
  Program p;
  const ValueId sum = p.add(p.input("a"), p.input("b"));
  const ValueId y = p.norm(sum);
  p.add(sum, y);
  CHECK(p.fused() == Keys{"add_rmsnorm", "add"});
  const Node& node = p.graph.nodes()[0];
  CHECK(node.outputs[0] == sum);
  CHECK(node.outputs[1] == y);
  CHECK(p.graph.value(sum).producer == 0);
  CHECK(node.attrs.AsFusedNorm()->eps == fb::RmsNormT{}.eps);
}

TEST_CASE("a sum that is read before its norm stays") {
  Program p;
  const ValueId sum = p.add(p.input("a"), p.input("b"));
  p.silu(sum);
  p.norm(sum);
  CHECK(p.fused() == Keys{"add", "silu", "rmsnorm"});
}

TEST_CASE("a norm's gradient takes in the gradient that goes around it") {
  Program p;
  const ValueId around = p.silu(p.input("g"));
  const ValueId dx = p.norm_bwd(p.input("dy"), p.input("x"));
  const ValueId total = p.add(around, dx);
  p.silu(total);
  CHECK(p.fused() == Keys{"silu", "norm_bwd_parameters", "norm_bwd_input", "silu"});
  const Node& node = p.graph.nodes()[2];
  CHECK(node.inputs[static_cast<size_t>(node.def->kernel().input_index("dresidual"))] == around);
  CHECK(node.outputs[0] == total);
}

TEST_CASE(
    "a norm's gradient waits for the gradient around it, and is left alone where something else reads it") {
  Program p;
  const ValueId dx = p.norm_bwd(p.input("dy"), p.input("x"));
  SUBCASE("another reader") {
    p.add(p.input("g"), dx);
    p.silu(dx);
    CHECK(p.fused() == Keys{"norm_bwd_parameters", "norm_bwd_input", "add", "silu"});
  }
  SUBCASE("added to itself") {
    p.add(dx, dx);
    CHECK(p.fused() == Keys{"norm_bwd_parameters", "norm_bwd_input", "add"});
  }
  SUBCASE("too early") {
    const ValueId around = p.silu(p.input("g"));
    p.add(around, dx);
    CHECK(p.fused() == Keys{"norm_bwd_parameters", "silu", "norm_bwd_input"});
  }
  SUBCASE("read before what is around it is there") {
    p.silu(dx);
    const ValueId around = p.silu(p.input("g"));
    p.add(around, dx);
    CHECK(p.fused() == Keys{"norm_bwd_parameters", "norm_bwd_input", "silu", "silu", "add"});
  }
}

/// rmsnorm_bwd of 8 columns that adds to the gradient of `weight`; returns dx.
ValueId many_rows_norm_bwd(Program& p, const char* weight, ValueId around = kNoValue) {
  const TensorType type{fb::DType::F32, {2048, 8}}, cols{fb::DType::F32, {8}};
  const ValueId dy = p.graph.persistent("dy", type, Role::kIo), x = p.graph.persistent("x", type, Role::kIo);
  const ValueId rstd = p.graph.persistent("rstd", {fb::DType::F32, {2048}}, Role::kIo);
  const ValueId parameter = p.graph.persistent(weight, cols, Role::kParameter);
  const ValueId before = p.graph.persistent(std::string("grad.") + weight, cols, Role::kGradient);
  const int node =
      p.graph.add_node(find_op("rmsnorm_bwd"), make_attrs<fb::RmsNormT>(), weight,
                       {dy, x, parameter, rstd, before}, {kNoValue, p.graph.next_version(before)});
  const ValueId dx = p.graph.nodes()[static_cast<size_t>(node)].outputs[0];
  return around == kNoValue ? dx : p.add(around, dx);
}

TEST_CASE("a norm's gradient over many rows stays one pass, which leaves sums of pieces") {
  Program p;
  const ValueId around = p.graph.persistent("around", {fb::DType::F32, {2048, 8}}, Role::kIo);
  const ValueId total = many_rows_norm_bwd(p, "weight", around);
  CHECK(p.fused() == Keys{"norm_bwd_partials", "norm_bwd_sum"});
  const Node &pass = p.graph.nodes()[0], &sum = p.graph.nodes()[1];
  CHECK(pass.inputs[static_cast<size_t>(pass.def->kernel().input_index("dresidual"))] == around);
  CHECK(pass.outputs == std::vector<ValueId>{total, sum.inputs[0], kNoValue});
  CHECK(p.graph.value(sum.inputs[0]).type == TensorType{fb::DType::F32, {128, 8}});  // of 16 rows each
  CHECK(p.graph.value(sum.inputs[1]).version == 0);
  CHECK(p.graph.value(sum.outputs[0]).version == 1);
}

TEST_CASE("LayerNorm's gradient over many rows leaves sums for the bias, where there is one") {
  const TensorType type{fb::DType::F64, {2049, 8}}, statistic{fb::DType::F64, {2049}},
      cols{fb::DType::F64, {8}};
  for (const bool bias : {false, true}) {
    Graph graph({fb::DType::F64, fb::DType::F64}, 2049);
    const auto memory = [&](const char* name, const TensorType& of, Role role) {
      return graph.persistent(name, of, role);
    };
    const auto gradient = [&](const char* name) {
      return graph.next_version(memory(name, cols, Role::kGradient));
    };
    fb::LayerNormT attrs;
    attrs.bias = bias;
    graph.add_node(find_op("layernorm_bwd"), make_attrs(attrs), "norm",
                   {memory("dy", type, Role::kIo), memory("x", type, Role::kIo),
                    memory("weight", cols, Role::kParameter), memory("mean", statistic, Role::kIo),
                    memory("rstd", statistic, Role::kIo)},
                   {kNoValue, gradient("grad.weight"), bias ? gradient("grad.bias") : kNoValue});
    fuse(graph);
    const std::vector<Node>& nodes = graph.nodes();
    REQUIRE(nodes.size() == (bias ? 3 : 2));
    CHECK(nodes[0].def->key == "norm_bwd_partials");
    CHECK((nodes[0].outputs[2] != kNoValue) == bias);
    for (size_t i = 1; i < nodes.size(); ++i) {
      CHECK(nodes[i].def->key == "norm_bwd_sum");
      CHECK(nodes[i].inputs == std::vector<ValueId>{nodes[0].outputs[i], kNoValue});
      CHECK(graph.value(nodes[i].inputs[0]).type == TensorType{fb::DType::F64, {65, 8}});  // of 32 rows
    }
  }
}

TEST_CASE("sums of the gradients of norms go last, in their order, unless something reads them") {
  Program p;
  many_rows_norm_bwd(p, "one");
  many_rows_norm_bwd(p, "two");
  const ValueId summed = p.graph.persistent("grad.one", {fb::DType::F32, {8}}, Role::kGradient);
  SUBCASE("nothing does") {
    many_rows_norm_bwd(p, "one");
    p.fused();
    sum_norm_gradients_last(p.graph);
    const std::vector<Node>& nodes = p.graph.nodes();
    REQUIRE(nodes.size() == 6);
    for (const size_t i : {0, 1, 2}) CHECK(nodes[i].def->key == "norm_bwd_partials");
    for (const size_t i : {3, 4, 5}) CHECK(nodes[i].def->key == "norm_bwd_sum");
    CHECK(nodes[5].inputs[1] == nodes[3].outputs[0]);
    CHECK(p.graph.value(nodes[4].outputs[0]).name == "grad.two");
  }
  SUBCASE("a node does") {
    p.silu(summed);
    p.fused();
    sum_norm_gradients_last(p.graph);
    Keys keys;
    for (const Node& node : p.graph.nodes()) keys.push_back(node.def->key);
    CHECK(keys == Keys{"norm_bwd_partials", "norm_bwd_sum", "norm_bwd_partials", "silu", "norm_bwd_sum"});
  }
}

TEST_CASE("a norm's gradient drops what goes on through a dropout") {
  Program p;
  const ValueId dx = p.norm_bwd(p.input("dy"), p.input("x"));
  fb::DropoutT attrs;
  attrs.p = 0.25f;
  const ValueId dropped = p.call("dropout", attrs, {dx, p.input("state")})[0];
  SUBCASE("and nothing else") {
    CHECK(p.fused() == Keys{"norm_bwd_parameters", "norm_bwd_input"});
    CHECK(p.graph.nodes()[1].outputs == std::vector<ValueId>{kNoValue, dropped});
    CHECK(p.graph.nodes()[1].attrs.AsFusedNorm()->dropout_p == attrs.p);
  }
  SUBCASE("and what goes around it") {
    p.silu(dx);
    CHECK(p.fused() == Keys{"norm_bwd_parameters", "norm_bwd_input", "silu"});
    CHECK(p.graph.nodes()[1].outputs == std::vector<ValueId>{dx, dropped});
  }
}

TEST_CASE("a loss and its gradient become one op where nothing else reads the statistics") {
  Program p;
  const ValueId logits = p.input("logits"),
                targets = p.graph.persistent("targets", {fb::DType::I32, {4}}, Role::kIo),
                dloss = p.graph.persistent("dloss", {fb::DType::F32, {}}, Role::kIo);
  const std::vector<ValueId> made = p.call("cross_entropy", fb::CrossEntropyT{}, {logits, targets});
  const ValueId dlogits =
      p.call("cross_entropy_bwd", fb::CrossEntropyT{}, {dloss, logits, targets, made[1]})[0];
  CHECK(p.fused() == Keys{"cross_entropy_gradient"});
  CHECK(p.graph.nodes()[0].inputs == std::vector<ValueId>{logits, targets, dloss});
  CHECK(p.graph.nodes()[0].outputs == std::vector<ValueId>{made[0], dlogits});
}

namespace {

/// A layer that makes queries, keys and values, its RoPE, attention and what autodiff makes of the last two.
struct RotatedAttention : Program {
  ValueId qkv = kNoValue;

  RotatedAttention() {
    fb::LinearT layer;
    layer.out_features = 16;
    fb::RopeT rotation;
    rotation.heads = 2;
    rotation.kv_heads = 1;
    rotation.head_dim = 4;
    fb::AttentionT heads;
    heads.heads = 2;
    heads.kv_heads = 1;
    heads.head_dim = 4;
    const ValueId x = graph.persistent("x", {fb::DType::F32, {1, 4, 8}}, Role::kIo);
    const ValueId weights = graph.persistent("weights", {fb::DType::F32, {16, 8}}, Role::kParameter);
    qkv = call("linear", layer, {x, weights})[0];
    const ValueId rotated = call("rope", rotation, {qkv})[0];
    const std::vector<ValueId> y = call("attention", heads, {rotated});
    const ValueId gradient = call("attention_bwd", heads, {y[0], rotated, y[0], y[1]})[0];
    call("rope_bwd", rotation, {gradient});
  }
};

}  // namespace

TEST_CASE("RoPE goes into the layer in front of it, its gradient into that of attention") {
  RotatedAttention p;
  CHECK(p.fused() == Keys{"linear_rope", "attention", "attention_bwd_rope"});
  CHECK(p.graph.nodes()[0].attrs.AsRope()->heads == 2);
  CHECK(p.graph.nodes()[2].attrs.AsRope()->heads == 2);
}

TEST_CASE("a RoPE whose input has another reader stays") {
  RotatedAttention read;
  read.call("scale", fb::ScaleT{}, {read.qkv});
  CHECK(read.fused() == Keys{"linear", "rope", "attention", "attention_bwd_rope", "scale"});
}

TEST_CASE("a pass that breaks the order of the nodes is found out") {
  Program p;
  p.norm(p.silu(p.input("a")));
  std::vector<Node> nodes = p.graph.nodes();
  std::swap(nodes[0], nodes[1]);
  CHECK_THROWS_AS(p.graph.replace_nodes(nodes), CompileError);
  CHECK_THROWS_AS(p.graph.replace_nodes({nodes[1], nodes[1]}), CompileError);
}

TEST_CASE("samples of an op run it") {
  for (const OpDef* def : op_table()) {
    CAPTURE(def->key);
    if (def->samples == nullptr) continue;
    for (const Sample& sample : def->samples()) {
      OpHarness harness(sample, {fb::DType::F64, fb::DType::F64}, runtime::make_cpu_device());
      CAPTURE(sample.name);
      CHECK(harness.runs(def->key));
    }
  }
}

}  // namespace moec::test
