// RMSNorm and LayerNorm over the last dimension, alone and of the sum of two values.
#include "compiler/ops/ops.h"
#include "kernels/workspace.h"

namespace moec::ops {
namespace {

std::vector<int64_t> leading(const TensorType& x) { return {x.shape.begin(), x.shape.end() - 1}; }

void require_rows(const OpCall& call) {
  call.require(!call.input(0).shape.empty() && call.input(0).dtype == call.precision().compute,
               "needs x[...,D] in {}, not {}", dtype_name(call.precision().compute),
               call.input(0).to_string());
}

/// One number per row: a mean or the reciprocal of a standard deviation.
void set_statistic(OpCall& call, int output) {
  call.set_output(output, {call.precision().accumulator(), leading(call.input(0))});
}

template <class Attrs>
void infer_norm(OpCall& call) {
  require_rows(call);
  call.require_not_negative("eps", call.attrs<Attrs>().eps);
  infer_like_first(call);
  set_statistic(call, 1);
}

void infer_layernorm(OpCall& call) {
  infer_norm<fb::LayerNormT>(call);
  set_statistic(call, 2);
}

void infer_add_rmsnorm(OpCall& call) {
  require_rows(call);
  call.require(call.input(0) == call.input(1), "{} and {} differ", call.input(0).to_string(),
               call.input(1).to_string());
  infer_like_first(call);
  call.set_output(1, call.input(0));
  set_statistic(call, 2);
}

void infer_add_layernorm(OpCall& call) {
  infer_add_rmsnorm(call);
  set_statistic(call, 3);
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

/// dx, and dropout of it.
void infer_norm_bwd_input(OpCall& call) {
  infer_like_first(call);
  call.set_output(1, call.input(0));
}

void infer_norm_bwd_parameters(OpCall& call) {
  set_gradient(call, 0, {call.input(0).cols()});
  set_gradient(call, 1, {call.input(0).cols()});
}

/// dx, and the gradients of the parameters as sums of pieces of the rows.
void infer_norm_bwd_partials(OpCall& call) {
  infer_like_first(call);
  const fb::DType sum = call.precision().accumulator();
  const int64_t pieces = column_pieces(call.input(0).rows(), dtype_size(sum)).count;
  for (const int output : {1, 2}) call.set_output(output, {sum, {pieces, call.input(0).cols()}});
}

/// As of layernorm_bwd or rmsnorm_bwd.
double norm_bwd_partials_flops(const OpCall& call) {
  constexpr int kMean = 3;
  return (call.has_input(kMean) ? 12 : 9) * static_cast<double>(call.output(0).elements());
}

void infer_norm_bwd_sum(OpCall& call) { set_gradient(call, 0, {call.input(0).cols()}); }

double norm_bwd_sum_flops(const OpCall& call) { return static_cast<double>(call.input(0).elements()); }

double norm_bwd_parameters_flops(const OpCall& call) {
  return 4 * static_cast<double>(call.input(0).elements());
}

std::vector<Sample> rmsnorm_samples() {
  return {
      {"rows", {{"x", {2, 3, 8}}}, R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {eps: 0.001}}])"},
      {"ragged, one row", {{"x", {1, 1, 37}}}, R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {}}])"},
      {"many rows", {{"x", {131, 5}}}, R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {}}])"},
      {"long rows", {{"x", {1, 150}}}, R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {}}])"},
      {"rows for one pass backward",
       {{"x", {2049, 2}}},
       R"([{name: "y", inputs: ["x"], op_type: "RmsNorm", op: {eps: 0.1}}])"}};
}

std::vector<Sample> layernorm_samples() {
  return {{"with bias", {{"x", {2, 3, 8}}}, R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {}}])"},
          {"without bias",
           {{"x", {3, 19}}},
           R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {bias: false, eps: 0.01}}])"},
          {"many rows", {{"x", {131, 5}}}, R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {}}])"},
          {"long rows", {{"x", {1, 150}}}, R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {}}])"},
          {"rows for one pass backward",
           {{"x", {2049, 2}}},
           R"([{name: "y", inputs: ["x"], op_type: "LayerNorm", op: {eps: 0.1}}])"}};
}

/// Norms whose gradient goes on through a dropout, alone or as what goes around that, too.
std::vector<Sample> norm_bwd_input_samples() {
  constexpr const char* kAlone = R"([{name: "d", inputs: ["x"], op_type: "Dropout", op: {p: 0.3}},
                      {name: "y", inputs: ["d"], op_type: "LayerNorm", op: {}}])";
  constexpr const char* kAround = R"([{name: "d", inputs: ["b"], op_type: "Dropout", op: {p: 0.3}},
                      {name: "sum", inputs: ["a", "d"], op_type: "Add", op: {}},
                      {name: "norm", inputs: ["sum"], op_type: "RmsNorm", op: {}},
                      {name: "y", inputs: ["sum", "norm"], op_type: "Mul", op: {}}])";
  return {{"of a dropout", {{"x", {6, 24}}}, kAlone},
          {"of a dropout, ragged", {{"x", {3, 19}}}, kAlone},
          {"of a sum with a dropout", {{"a", {2, 3, 16}}, {"b", {2, 3, 16}}}, kAround},
          {"of a sum with a dropout, ragged", {{"a", {5, 37}}, {"b", {5, 37}}}, kAround}};
}

/// A pre-norm block without its branch, so that the gradient of the sum is one of the norm and one around it.
std::vector<Sample> add_norm_samples(const char* op, const char* attrs) {
  const std::string nodes = fmt::format(R"([{{name: "sum", inputs: ["a", "b"], op_type: "Add", op: {{}}}},
                      {{name: "norm", inputs: ["sum"], op_type: "{}", op: {}}},
                      {{name: "y", inputs: ["sum", "norm"], op_type: "Mul", op: {{}}}}])",
                                        op, attrs);
  return {{"rows", {{"a", {2, 3, 8}}, {"b", {2, 3, 8}}}, nodes},
          {"ragged, one row", {{"a", {1, 1, 37}}, {"b", {1, 1, 37}}}, nodes},
          {"many rows", {{"a", {131, 5}}, {"b", {131, 5}}}, nodes}};
}

std::vector<Sample> add_rmsnorm_samples() { return add_norm_samples("RmsNorm", "{eps: 0.001}"); }
std::vector<Sample> add_layernorm_samples() {
  std::vector<Sample> samples = add_norm_samples("LayerNorm", "{eps: 0.001}");
  const std::vector<Sample> without_bias = add_norm_samples("LayerNorm", "{bias: false}");
  samples.insert(samples.end(), without_bias.begin(), without_bias.end());
  return samples;
}

}  // namespace

const OpDef rmsnorm = {.key = "rmsnorm",
                       .attrs = fb::Op::RmsNorm,
                       .infer = infer_norm<fb::RmsNormT>,
                       .flops = flops_per_element<4>,
                       .in_models = true,
                       .parameters = rmsnorm_parameters,
                       .backward = rmsnorm_rule,
                       .samples = rmsnorm_samples};
const OpDef add_rmsnorm = {.key = "add_rmsnorm",
                           .attrs = fb::Op::FusedNorm,
                           .infer = infer_add_rmsnorm,
                           .flops = flops_per_element<5>,
                           .samples = add_rmsnorm_samples};
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
const OpDef add_layernorm = {.key = "add_layernorm",
                             .attrs = fb::Op::FusedNorm,
                             .infer = infer_add_layernorm,
                             .flops = flops_per_element<8>,
                             .samples = add_layernorm_samples};
const OpDef layernorm_bwd = {.key = "layernorm_bwd",
                             .attrs = fb::Op::LayerNorm,
                             .infer = infer_layernorm_bwd,
                             .flops = flops_per_element<12>};

const OpDef norm_bwd_input = {.key = "norm_bwd_input",
                              .attrs = fb::Op::FusedNorm,
                              .infer = infer_norm_bwd_input,
                              .flops = flops_per_element<8>,
                              .samples = norm_bwd_input_samples};
const OpDef norm_bwd_parameters = {.key = "norm_bwd_parameters",
                                   .attrs = fb::Op::FusedNorm,
                                   .infer = infer_norm_bwd_parameters,
                                   .flops = norm_bwd_parameters_flops};
const OpDef norm_bwd_partials = {.key = "norm_bwd_partials",
                                 .attrs = fb::Op::FusedNorm,
                                 .infer = infer_norm_bwd_partials,
                                 .flops = norm_bwd_partials_flops};
const OpDef norm_bwd_sum = {.key = "norm_bwd_sum",
                            .attrs = fb::Op::FusedNorm,
                            .infer = infer_norm_bwd_sum,
                            .flops = norm_bwd_sum_flops};

}  // namespace moec::ops
