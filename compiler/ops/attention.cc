// RoPE and causal attention over packed qkv[B,S,(H+2K)d].
#include <cmath>

#include "compiler/ops/ops.h"

namespace moec::ops {
namespace {

/// Of a rotation, per element.
constexpr int kRopeFlops = 3;
/// Of every device's attention (kernels/operand_shapes.def).
constexpr uint32_t kMostHeadDim = 256;

template <class Attrs>
void require_packed(const OpCall& call, const TensorType& qkv) {
  const auto& attrs = call.attrs<Attrs>();
  call.require(attrs.heads > 0 && attrs.kv_heads > 0 && attrs.head_dim > 0,
               "heads, kv_heads and head_dim must be positive");
  call.require(attrs.heads % attrs.kv_heads == 0, "{} query heads cannot share {} key/value heads evenly",
               attrs.heads, attrs.kv_heads);
  const int64_t width = (int64_t{attrs.heads} + 2 * int64_t{attrs.kv_heads}) * attrs.head_dim;
  call.require(qkv.shape.size() == 3 && qkv.cols() == width && qkv.dtype == call.precision().compute,
               "needs qkv[B,S,{}] in {}, not {}", width, dtype_name(call.precision().compute),
               qkv.to_string());
}

void infer_rope(OpCall& call) {
  const auto& attrs = call.attrs<fb::RopeT>();
  require_packed<fb::RopeT>(call, call.input(0));
  call.require(attrs.head_dim % 2 == 0, "head_dim {} is odd", attrs.head_dim);
  call.require_positive("base", attrs.base);
  call.require_positive("ntk_alpha", attrs.ntk_alpha);
  call.require(attrs.ntk_alpha == 1 || attrs.head_dim > 2, "NTK scaling needs a head_dim above 2");
  infer_like_first(call);
}

void rope_rule(BackwardContext& b) { b.emit("rope_bwd", {b.grad(0)}, {0}); }

void infer_attention(OpCall& call) {
  const auto& attrs = call.attrs<fb::AttentionT>();
  const TensorType& qkv = call.input(0);
  require_packed<fb::AttentionT>(call, qkv);
  call.require(attrs.head_dim <= kMostHeadDim, "head_dim {} is more than {}", attrs.head_dim, kMostHeadDim);
  call.set_output(0, {qkv.dtype, {qkv.shape[0], qkv.shape[1], int64_t{attrs.heads} * attrs.head_dim}});
  call.set_output(1, {call.precision().accumulator(), {qkv.shape[0], attrs.heads, qkv.shape[1]}});
}

/// Two products of S*S/2 (query, key) pairs and head_dim each.
double attention_flops(const OpCall& call) {
  const TensorType& y = call.output(0);
  return 2.0 * 2.0 * static_cast<double>(y.elements()) * static_cast<double>(y.shape[1]) / 2;
}

void attention_rule(BackwardContext& b) {
  b.emit("attention_bwd", {b.grad(0), b.input(0), b.output(0), b.output(1)}, {0});
}

void infer_attention_bwd(OpCall& call) { call.set_output(0, call.input(1)); }

/// Five products, one of them the recomputed scores.
double attention_bwd_flops(const OpCall& call) {
  const TensorType& dy = call.input(0);
  return 5 * 2.0 * static_cast<double>(dy.elements()) * static_cast<double>(dy.shape[1]) / 2;
}

void infer_linear_rope(OpCall& call) {
  const TensorType &x = call.input(0), &weight = call.input(1);
  call.require(x.dtype == call.precision().compute && x.cols() == weight.cols(),
               "weight {} does not fit x {}", weight.to_string(), x.to_string());
  call.set_output(0, {x.dtype, with_cols(x.shape, weight.rows())});
  require_packed<fb::RopeT>(call, call.output(0));
}

double linear_rope_flops(const OpCall& call) {
  return (2.0 * static_cast<double>(call.input(0).cols()) + kRopeFlops) *
         static_cast<double>(call.output(0).elements());
}

double attention_bwd_rope_flops(const OpCall& call) {
  return attention_bwd_flops(call) + flops_per_element<kRopeFlops>(call);
}

std::vector<Sample> rope_samples() {
  return {{"interleaved, NTK, GQA", {{"x", {2, 5, 24}}}, R"([{name: "y", inputs: ["x"], op_type: "Rope",
             op: {heads: 2, kv_heads: 1, head_dim: 6, base: 100, ntk_alpha: 8}}])"},
          {"half", {{"x", {1, 7, 24}}}, R"([{name: "y", inputs: ["x"], op_type: "Rope",
             op: {heads: 2, kv_heads: 2, head_dim: 4, style: "Half"}}])"},
          {"interleaved, whole vectors", {{"x", {1, 3, 64}}}, R"([{name: "y", inputs: ["x"], op_type: "Rope",
             op: {heads: 2, kv_heads: 1, head_dim: 16}}])"},
          {"half, whole vectors", {{"x", {1, 3, 64}}}, R"([{name: "y", inputs: ["x"], op_type: "Rope",
             op: {heads: 2, kv_heads: 1, head_dim: 16, style: "Half"}}])"}};
}

std::vector<Sample> linear_rope_samples() {
  return {{"interleaved, GQA", {{"x", {2, 5, 7}}}, R"([
             {name: "qkv", inputs: ["x"], op_type: "Linear", op: {out_features: 24, init_std: 1}},
             {name: "y", inputs: ["qkv"], op_type: "Rope", op: {heads: 2, kv_heads: 1, head_dim: 6}}])"},
          {"half, with bias", {{"x", {1, 9, 8}}}, R"([
             {name: "qkv", inputs: ["x"], op_type: "Linear", op: {out_features: 24, bias: true, init_std: 1}},
             {name: "y", inputs: ["qkv"], op_type: "Rope",
              op: {heads: 2, kv_heads: 2, head_dim: 4, style: "Half"}}])"}};
}

std::vector<Sample> attention_bwd_rope_samples() {
  return {{"interleaved, MQA", {{"x", {2, 6, 24}}}, R"([
             {name: "qkv", inputs: ["x"], op_type: "Rope", op: {heads: 4, kv_heads: 1, head_dim: 4}},
             {name: "y", inputs: ["qkv"], op_type: "Attention", op: {heads: 4, kv_heads: 1, head_dim: 4}}])"},
          {"half, several tiles", {{"x", {1, 71, 16}}}, R"([
             {name: "qkv", inputs: ["x"], op_type: "Rope",
              op: {heads: 2, kv_heads: 1, head_dim: 4, style: "Half"}},
             {name: "y", inputs: ["qkv"], op_type: "Attention", op: {heads: 2, kv_heads: 1, head_dim: 4}}])"}};
}

std::vector<Sample> attention_samples() {
  return {{"MHA", {{"x", {2, 6, 24}}}, R"([{name: "y", inputs: ["x"], op_type: "Attention",
             op: {heads: 2, kv_heads: 2, head_dim: 4}}])"},
          {"GQA", {{"x", {1, 5, 24}}}, R"([{name: "y", inputs: ["x"], op_type: "Attention",
             op: {heads: 4, kv_heads: 2, head_dim: 3}}])"},
          {"MQA", {{"x", {2, 9, 15}}}, R"([{name: "y", inputs: ["x"], op_type: "Attention",
             op: {heads: 3, kv_heads: 1, head_dim: 3}}])"},
          {"sequence of one", {{"x", {3, 1, 12}}}, R"([{name: "y", inputs: ["x"], op_type: "Attention",
             op: {heads: 2, kv_heads: 1, head_dim: 3}}])"},
          {"several tiles, ragged", {{"x", {1, 71, 12}}}, R"([{name: "y", inputs: ["x"], op_type: "Attention",
             op: {heads: 2, kv_heads: 1, head_dim: 3}}])"}};
}

}  // namespace

const OpDef rope = {.key = "rope",
                    .attrs = fb::Op::Rope,
                    .infer = infer_rope,
                    .flops = flops_per_element<kRopeFlops>,
                    .in_models = true,
                    .backward = rope_rule,
                    .samples = rope_samples};
const OpDef rope_bwd = {.key = "rope_bwd",
                        .attrs = fb::Op::Rope,
                        .infer = infer_like_first,
                        .flops = flops_per_element<kRopeFlops>};
const OpDef linear_rope = {.key = "linear_rope",
                           .attrs = fb::Op::Rope,
                           .infer = infer_linear_rope,
                           .flops = linear_rope_flops,
                           .samples = linear_rope_samples};

const OpDef attention = {.key = "attention",
                         .attrs = fb::Op::Attention,
                         .infer = infer_attention,
                         .flops = attention_flops,
                         .in_models = true,
                         .backward = attention_rule,
                         .samples = attention_samples};
const OpDef attention_bwd = {.key = "attention_bwd",
                             .attrs = fb::Op::Attention,
                             .infer = infer_attention_bwd,
                             .flops = attention_bwd_flops};
const OpDef attention_bwd_rope = {.key = "attention_bwd_rope",
                                  .attrs = fb::Op::Rope,
                                  .infer = infer_attention_bwd,
                                  .flops = attention_bwd_rope_flops,
                                  .samples = attention_bwd_rope_samples};

}  // namespace moec::ops
