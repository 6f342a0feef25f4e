// RMSNorm and LayerNorm over the last dimension.
#include "compiler/ops/ops.h"

namespace moec::ops {
namespace {

std::vector<int64_t> leading(const TensorType& x) { return {x.shape.begin(), x.shape.end() - 1}; }

void require_rows(const OpCall& call) {
  call.require(!call.input(0).shape.empty() && call.input(0).dtype == call.precision().compute,
               "needs x[...,D] in {}, not {}", dtype_name(call.precision().compute),
               call.input(0).to_string());
}

void infer_rmsnorm(OpCall& call) {
  require_rows(call);
  infer_like_first(call);
  call.set_output(1, {call.precision().accumulator(), leading(call.input(0))});
}

std::vector<ParameterSpec> rmsnorm_parameters(const OpCall& call) {
  require_rows(call);
  return {{.name = "weight", .shape = {call.input(0).cols()}, .init_value = 1}};
}

void rmsnorm_rule(BackwardContext& b) {
  b.emit("rmsnorm_bwd", {b.grad(0), b.input(0), b.input(1), b.output(1)}, {0, 1});
}

void infer_rmsnorm_bwd(OpCall& call) {
  infer_like_first(call);
  set_gradient(call, 1, call.input(2).shape);
}

void infer_layernorm(OpCall& call) {
  require_rows(call);
  infer_like_first(call);
  call.set_output(1, {call.precision().accumulator(), leading(call.input(0))});
  call.set_output(2, {call.precision().accumulator(), leading(call.input(0))});
}

std::vector<ParameterSpec> layernorm_parameters(const OpCall& call) {
  std::vector<ParameterSpec> specs = rmsnorm_parameters(call);
  if (call.attrs<fb::LayerNormT>().bias) specs.push_back({.name = "bias", .shape = {call.input(0).cols()}});
  return specs;
}

void layernorm_rule(BackwardContext& b) {
  std::vector<int> targets = {0, 1};
  if (b.input(2) != kNoValue) targets.push_back(2);
  b.emit("layernorm_bwd", {b.grad(0), b.input(0), b.input(1), b.output(1), b.output(2)}, targets);
}

void infer_layernorm_bwd(OpCall& call) {
  infer_rmsnorm_bwd(call);
  if (call.attrs<fb::LayerNormT>().bias) set_gradient(call, 2, call.input(2).shape);
}

std::vector<Sample> rmsnorm_samples() {
  return {
      {"rows", {{"x", {2, 3, 8}}}, R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {eps: 0.001}}])"},
      {"ragged, one row", {{"x", {1, 1, 37}}}, R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {}}])"},
      {"many rows", {{"x", {131, 5}}}, R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {}}])"}};
}

std::vector<Sample> layernorm_samples() {
  return {{"with bias", {{"x", {2, 3, 8}}}, R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {}}])"},
          {"without bias",
           {{"x", {3, 19}}},
           R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {bias: false, eps: 0.01}}])"},
          {"many rows", {{"x", {131, 5}}}, R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {}}])"}};
}

}  // namespace

const OpDef rmsnorm = {.key = "rmsnorm",
                       .attrs = fb::Op::RmsNorm,
                       .infer = infer_rmsnorm,
                       .flops = flops_per_element<4>,
                       .in_models = true,
                       .parameters = rmsnorm_parameters,
                       .backward = rmsnorm_rule,
                       .samples = rmsnorm_samples};
const OpDef rmsnorm_bwd = {.key = "rmsnorm_bwd",
                           .attrs = fb::Op::RmsNorm,
                           .infer = infer_rmsnorm_bwd,
                           .flops = flops_per_element<9>};

const OpDef layernorm = {.key = "layernorm",
                         .attrs = fb::Op::LayerNorm,
                         .infer = infer_layernorm,
                         .flops = flops_per_element<7>,
                         .in_models = true,
                         .parameters = layernorm_parameters,
                         .backward = layernorm_rule,
                         .samples = layernorm_samples};
const OpDef layernorm_bwd = {.key = "layernorm_bwd",
                             .attrs = fb::Op::LayerNorm,
                             .infer = infer_layernorm_bwd,
                             .flops = flops_per_element<12>};

}  // namespace moec::ops
