// Linear layers, alone and with what precedes or follows them. FLOPs: 2 per multiply-add.
#include "compiler/ops/ops.h"

namespace moec::ops {
namespace {

/// Of an activation or its derivative, per element.
constexpr double kEpilogueFlops = 8;

double matmul_flops(int64_t rows, int64_t in, int64_t out) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
}

void infer_linear(OpCall& call) {
  const TensorType& x = call.input(0);
  const auto& attrs = call.attrs<fb::LinearT>();
  call.require(x.dtype == call.precision().compute && !x.shape.empty(), "needs x[...,I] in {}, not {}",
               dtype_name(call.precision().compute), x.to_string());
  if (call.has_input(1))
    call.require(call.input(1).shape == std::vector<int64_t>{attrs.out_features, x.cols()},
                 "weight {} does not fit x {} and {} output features", call.input(1).to_string(),
                 x.to_string(), attrs.out_features);
  call.set_output(0, {attrs.full_precision ? call.precision().accumulator() : x.dtype,
                      with_cols(x.shape, attrs.out_features)});
}

std::vector<ParameterSpec> linear_parameters(const OpCall& call) {
  const auto& attrs = call.attrs<fb::LinearT>();
  call.require(attrs.out_features > 0, "out_features must be positive");
  std::vector<ParameterSpec> specs = {{.name = "weight",
                                       .shape = {attrs.out_features, call.input(0).cols()},
                                       .init_std = attrs.init_std,
                                       .tied_to = attrs.tied_to}};
  if (attrs.bias) specs.push_back({.name = "bias", .shape = {attrs.out_features}});
  return specs;
}

double linear_flops(const OpCall& call) {
  return matmul_flops(call.input(0).rows(), call.input(0).cols(), call.output(0).cols());
}

void linear_rule(BackwardContext& b) {
  b.emit("linear_bwd_input", {b.grad(0), b.input(1)}, {0});
  b.emit("linear_bwd_weight", {b.grad(0), b.input(0)}, {1});
  if (b.input(2) != kNoValue) b.emit("bias_bwd", {b.grad(0)}, {2});
}

void infer_linear_bwd_input(OpCall& call) {
  call.set_output(0, {call.precision().compute, with_cols(call.input(0).shape, call.input(1).cols())});
}

double linear_bwd_input_flops(const OpCall& call) {
  return matmul_flops(call.input(0).rows(), call.input(0).cols(), call.output(0).cols());
}

void infer_linear_bwd_weight(OpCall& call) {
  set_gradient(call, 0, {call.input(0).cols(), call.input(1).cols()});
}

double linear_bwd_weight_flops(const OpCall& call) {
  return matmul_flops(call.input(0).rows(), call.input(0).cols(), call.input(1).cols());
}

void infer_bias_bwd(OpCall& call) { set_gradient(call, 0, {call.input(0).cols()}); }

double bias_bwd_flops(const OpCall& call) { return static_cast<double>(call.input(0).elements()); }

void infer_fused_linear(OpCall& call) {
  const TensorType &x = call.input(0), &weight = call.input(1);
  call.require(x.dtype == call.precision().compute && x.cols() == weight.cols(),
               "weight {} does not fit x {}", weight.to_string(), x.to_string());
  const TensorType y = {x.dtype, with_cols(x.shape, weight.rows())};
  set_output_with_residual(call, y, 3);
  call.set_output(1, y);
}

double fused_linear_flops(const OpCall& call) {
  return linear_flops(call) + kEpilogueFlops * static_cast<double>(call.output(0).elements());
}

void infer_fused_linear_bwd_input(OpCall& call) {
  infer_linear_bwd_input(call);
  call.require(call.input(2) == call.output(0), "preactivation {} is not like dx {}",
               call.input(2).to_string(), call.output(0).to_string());
}

double fused_linear_bwd_input_flops(const OpCall& call) {
  return linear_bwd_input_flops(call) + kEpilogueFlops * static_cast<double>(call.output(0).elements());
}

void infer_linear_bwd_parameters(OpCall& call) {
  infer_linear_bwd_weight(call);
  set_gradient(call, 1, {call.input(0).cols()});
}

double linear_bwd_parameters_flops(const OpCall& call) {
  return linear_bwd_weight_flops(call) + bias_bwd_flops(call);
}

std::vector<Sample> linear_samples() {
  return {{"with bias", {{"x", {2, 3, 5}}}, R"([
             {name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 7, bias: true, init_std: 1}}])"},
          {"without bias, one row", {{"x", {1, 1, 3}}}, R"([
             {name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 4, init_std: 1}}])"},
          {"full precision", {{"x", {33, 17}}}, R"([
             {name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 5, full_precision: true, init_std: 1}}])"},
          {"tied to an embedding", {{"t", {1, 6}, Fill::kTokens, 5}}, R"([
             {name: "e", inputs: ["t"], op_type: "Embedding", op: {vocab_size: 5, dim: 3, init_std: 1}},
             {name: "y", inputs: ["e"], op_type: "Linear", op: {out_features: 5, tied_to: "b.e.weight"}}])"}};
}

/// A layer between values that need gradients, so that both of its gradients are made; what follows it is
/// fused.
std::vector<Sample> fused_linear_samples() {
  const auto sample = [](const char* name, std::vector<int64_t> shape, int out, const char* after) {
    return Sample{
        name,
        {{"x", shape}},
        fmt::format(
            R"([{{name: "z", inputs: ["x"], op_type: "Linear", op: {{out_features: {}, bias: true, init_std: 1}}}},
                        {}])",
            out, after)};
  };
  return {sample("GELU, and a layer over it", {2, 3, 5}, 7, R"(
             {name: "a", inputs: ["z"], op_type: "Gelu", op: {}},
             {name: "y", inputs: ["a"], op_type: "Linear", op: {out_features: 5, bias: true, init_std: 1}})"),
          sample("tanh GELU, ragged", {33, 17}, 35, R"(
             {name: "a", inputs: ["z"], op_type: "Gelu", op: {tanh: true}},
             {name: "y", inputs: ["a"], op_type: "Linear", op: {out_features: 3, init_std: 1}})"),
          sample("SiLU", {4, 8}, 12, R"(
             {name: "a", inputs: ["z"], op_type: "Silu", op: {}},
             {name: "y", inputs: ["a"], op_type: "Linear", op: {out_features: 4, init_std: 1}})"),
          sample("dropout", {6, 10}, 9, R"({name: "y", inputs: ["z"], op_type: "Dropout", op: {p: 0.3}})"),
          sample("dropout and residual", {5, 8}, 8, R"(
             {name: "d", inputs: ["z"], op_type: "Dropout", op: {p: 0.3}},
             {name: "y", inputs: ["x", "d"], op_type: "Add", op: {}})"),
          sample("dropout and residual, many rows", {300, 70}, 70, R"(
             {name: "d", inputs: ["z"], op_type: "Dropout", op: {p: 0.5}},
             {name: "y", inputs: ["x", "d"], op_type: "Add", op: {}})")};
}

}  // namespace

const OpDef linear = {.key = "linear",
                      .attrs = fb::Op::Linear,
                      .infer = infer_linear,
                      .flops = linear_flops,
                      .in_models = true,
                      .parameters = linear_parameters,
                      .backward = linear_rule,
                      .samples = linear_samples};
const OpDef linear_bwd_input = {.key = "linear_bwd_input",
                                .attrs = fb::Op::Linear,
                                .infer = infer_linear_bwd_input,
                                .flops = linear_bwd_input_flops};
const OpDef linear_bwd_weight = {.key = "linear_bwd_weight",
                                 .attrs = fb::Op::Linear,
                                 .infer = infer_linear_bwd_weight,
                                 .flops = linear_bwd_weight_flops};
const OpDef fused_linear = {.key = "fused_linear",
                            .attrs = fb::Op::FusedLinear,
                            .infer = infer_fused_linear,
                            .flops = fused_linear_flops,
                            .samples = fused_linear_samples};
const OpDef fused_linear_bwd_input = {.key = "fused_linear_bwd_input",
                                      .attrs = fb::Op::FusedLinear,
                                      .infer = infer_fused_linear_bwd_input,
                                      .flops = fused_linear_bwd_input_flops};
const OpDef linear_bwd_parameters = {.key = "linear_bwd_parameters",
                                     .attrs = fb::Op::Linear,
                                     .infer = infer_linear_bwd_parameters,
                                     .flops = linear_bwd_parameters_flops};
const OpDef bias_bwd = {
    .key = "bias_bwd", .attrs = fb::Op::Linear, .infer = infer_bias_bwd, .flops = bias_bwd_flops};

}  // namespace moec::ops
