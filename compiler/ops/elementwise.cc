// Activations and other elementwise ops, softmax and dropout.
#include <cmath>

#include "compiler/ops/ops.h"

namespace moec::ops {
namespace {

void require_real(const OpCall& call, int i) {
  const fb::DType dtype = call.input(i).dtype;
  call.require(dtype == call.precision().compute || dtype == call.precision().accumulator(),
               "needs real numbers, not {}", call.input(i).to_string());
}

void infer_unary(OpCall& call) {
  require_real(call, 0);
  infer_like_first(call);
}

void infer_rowwise(OpCall& call) {
  call.require(!call.input(0).shape.empty(), "needs at least one dimension");
  infer_unary(call);
}

void infer_binary(OpCall& call) {
  require_real(call, 0);
  call.require(call.input(0) == call.input(1), "{} and {} differ", call.input(0).to_string(),
               call.input(1).to_string());
  infer_like_first(call);
}

void silu_rule(BackwardContext& b) { b.emit("silu_bwd", {b.grad(0), b.input(0)}, {0}); }
void gelu_rule(BackwardContext& b) { b.emit("gelu_bwd", {b.grad(0), b.input(0)}, {0}); }
void swiglu_rule(BackwardContext& b) { b.emit("swiglu_bwd", {b.grad(0), b.input(0)}, {0}); }
void scale_rule(BackwardContext& b) { b.emit("scale", {b.grad(0)}, {0}); }
void softmax_rule(BackwardContext& b) { b.emit("softmax_bwd", {b.grad(0), b.output(0)}, {0}); }
/// The mask depends on the stream and the micro-batch alone, so the same op masks the gradient.
void dropout_rule(BackwardContext& b) { b.emit("dropout", {b.grad(0), b.input(1)}, {0}); }

void add_rule(BackwardContext& b) {
  b.pass(0, b.grad(0));
  b.pass(1, b.grad(0));
}

void mul_rule(BackwardContext& b) {
  b.emit("mul", {b.grad(0), b.input(1)}, {0});
  b.emit("mul", {b.grad(0), b.input(0)}, {1});
}

void infer_swiglu(OpCall& call) {
  const TensorType& x = call.input(0);
  require_real(call, 0);
  call.require(!x.shape.empty() && x.cols() % 2 == 0, "needs interleaved gate and up columns, not {}",
               x.to_string());
  call.set_output(0, {x.dtype, with_cols(x.shape, x.cols() / 2)});
}

void infer_swiglu_bwd(OpCall& call) { call.set_output(0, call.input(1)); }

void infer_dropout(OpCall& call) {
  const float p = call.attrs<fb::DropoutT>().p;
  call.require(p >= 0 && p < 1, "p must be in [0, 1), not {}", p);
  infer_unary(call);
}

void infer_scale(OpCall& call) {
  const float factor = call.attrs<fb::ScaleT>().factor;
  call.require(std::isfinite(factor), "factor must be a number, not {}", factor);
  infer_unary(call);
}

std::vector<Sample> unary_sample(const char* op) {
  return {{"ragged",
           {{"x", {3, 5, 11}}},
           fmt::format(R"([{{name: "y", inputs: ["x"], op_type: "{}", op: {{}}}}])", op)}};
}

std::vector<Sample> silu_samples() { return unary_sample("Silu"); }
std::vector<Sample> softmax_samples() { return unary_sample("Softmax"); }
std::vector<Sample> gelu_samples() {
  std::vector<Sample> samples = unary_sample("Gelu");
  samples.push_back(
      {"tanh", {{"x", {4, 9}}}, R"([{name: "y", inputs: ["x"], op_type: "Gelu", op: {tanh: true}}])"});
  return samples;
}
std::vector<Sample> swiglu_samples() {
  return {{"ragged", {{"x", {3, 5, 22}}}, R"([{name: "y", inputs: ["x"], op_type: "Swiglu", op: {}}])"}};
}
std::vector<Sample> scale_samples() {
  return {
      {"negative", {{"x", {7}}}, R"([{name: "y", inputs: ["x"], op_type: "Scale", op: {factor: -2.5}}])"}};
}
std::vector<Sample> add_samples() {
  return {{"two values",
           {{"a", {3, 5}}, {"b", {3, 5}}},
           R"([{name: "y", inputs: ["a", "b"], op_type: "Add", op: {}}])"},
          {"a value with itself",
           {{"a", {3, 5}}},
           R"([{name: "y", inputs: ["a", "a"], op_type: "Add", op: {}}])"}};
}
std::vector<Sample> mul_samples() {
  return {{"two values",
           {{"a", {3, 5}}, {"b", {3, 5}}},
           R"([{name: "y", inputs: ["a", "b"], op_type: "Mul", op: {}}])"},
          {"a square", {{"a", {3, 5}}}, R"([{name: "y", inputs: ["a", "a"], op_type: "Mul", op: {}}])"}};
}
std::vector<Sample> dropout_samples() {
  return {{"a third", {{"x", {9, 11}}}, R"([{name: "y", inputs: ["x"], op_type: "Dropout", op: {p: 0.33}}])"},
          {"none", {{"x", {5}}}, R"([{name: "y", inputs: ["x"], op_type: "Dropout", op: {p: 0}}])"}};
}

}  // namespace

const OpDef silu = {.key = "silu",
                    .attrs = fb::Op::Silu,
                    .infer = infer_unary,
                    .flops = flops_per_element<4>,
                    .in_models = true,
                    .backward = silu_rule,
                    .samples = silu_samples};
const OpDef silu_bwd = {
    .key = "silu_bwd", .attrs = fb::Op::Silu, .infer = infer_binary, .flops = flops_per_element<8>};

const OpDef gelu = {.key = "gelu",
                    .attrs = fb::Op::Gelu,
                    .infer = infer_unary,
                    .flops = flops_per_element<8>,
                    .in_models = true,
                    .backward = gelu_rule,
                    .samples = gelu_samples};
const OpDef gelu_bwd = {
    .key = "gelu_bwd", .attrs = fb::Op::Gelu, .infer = infer_binary, .flops = flops_per_element<14>};

const OpDef swiglu = {.key = "swiglu",
                      .attrs = fb::Op::Swiglu,
                      .infer = infer_swiglu,
                      .flops = flops_per_element<5>,
                      .in_models = true,
                      .backward = swiglu_rule,
                      .samples = swiglu_samples};
const OpDef swiglu_bwd = {
    .key = "swiglu_bwd", .attrs = fb::Op::Swiglu, .infer = infer_swiglu_bwd, .flops = flops_per_element<5>};

const OpDef add = {.key = "add",
                   .attrs = fb::Op::Add,
                   .infer = infer_binary,
                   .in_models = true,
                   .backward = add_rule,
                   .samples = add_samples};
const OpDef mul = {.key = "mul",
                   .attrs = fb::Op::Mul,
                   .infer = infer_binary,
                   .in_models = true,
                   .backward = mul_rule,
                   .samples = mul_samples};
const OpDef scale = {.key = "scale",
                     .attrs = fb::Op::Scale,
                     .infer = infer_scale,
                     .in_models = true,
                     .backward = scale_rule,
                     .samples = scale_samples};

const OpDef softmax = {.key = "softmax",
                       .attrs = fb::Op::Softmax,
                       .infer = infer_rowwise,
                       .flops = flops_per_element<4>,
                       .in_models = true,
                       .backward = softmax_rule,
                       .samples = softmax_samples};
const OpDef softmax_bwd = {
    .key = "softmax_bwd", .attrs = fb::Op::Softmax, .infer = infer_binary, .flops = flops_per_element<4>};

const OpDef dropout = {.key = "dropout",
                       .attrs = fb::Op::Dropout,
                       .infer = infer_dropout,
                       .in_models = true,
                       .backward = dropout_rule,
                       .samples = dropout_samples};

}  // namespace moec::ops
