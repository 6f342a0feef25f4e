// Mixture of experts: routing, dispatch to experts, grouped linear layers, combine.
#include "compiler/ops/ops.h"
#include "kernels/gradient_squares.h"

namespace moec::ops {
namespace {

double grouped_flops(const TensorType& rows, int64_t out) {
  return 2.0 * static_cast<double>(rows.elements()) * static_cast<double>(out);
}

void infer_router(OpCall& call) {
  const TensorType& logits = call.input(0);
  const int64_t k = call.attrs<fb::RouterT>().top_k;
  call.require(logits.dtype == call.precision().accumulator(),
               "needs logits in {} (a Linear with full_precision), not {}",
               dtype_name(call.precision().accumulator()), logits.to_string());
  call.require(!logits.shape.empty() && k >= 1 && k <= logits.cols(), "top_k {} does not fit logits {}", k,
               logits.to_string());
  const std::vector<int64_t> chosen = with_cols(logits.shape, k);
  call.set_output(0, {logits.dtype, chosen});
  call.set_output(1, {fb::DType::I32, chosen});
  call.set_output(2, logits);
}

void router_rule(BackwardContext& b) {
  b.emit("router_bwd", {b.grad(0), b.grad(2), b.output(2), b.output(1), b.output(0)}, {0});
}

void infer_router_bwd(OpCall& call) { call.set_output(0, call.input(2)); }

void infer_expert_index(OpCall& call) {
  const TensorType& experts = call.input(0);
  const int64_t count = call.attrs<fb::ExpertIndexT>().experts;
  call.require(experts.dtype == fb::DType::I32 && !experts.shape.empty(), "needs experts i32[...,k], not {}",
               experts.to_string());
  call.require(count >= experts.cols(), "{} experts, but {} chosen per token", count, experts.cols());
  call.require(experts.elements() <= INT32_MAX, "more than 2^31 routed rows");
  call.set_output(0, {fb::DType::I32, {count + 1}});
  call.set_output(1, {fb::DType::I32, {experts.elements()}});
  call.set_output(2, experts);
}

void infer_dispatch(OpCall& call) {
  const TensorType& x = call.input(0);
  call.require(!x.shape.empty() && call.input(2).rows() == x.rows() &&
                   call.input(1).shape == std::vector<int64_t>{call.input(2).elements()},
               "routing {} does not fit x {}", call.input(2).to_string(), x.to_string());
  call.set_output(0, {x.dtype, {call.input(1).elements(), x.cols()}});
}

void dispatch_rule(BackwardContext& b) { b.emit("dispatch_bwd", {b.grad(0), b.input(2)}, {0}); }

void infer_dispatch_bwd(OpCall& call) {
  set_output_with_residual(call, {call.input(0).dtype, with_cols(call.input(1).shape, call.input(0).cols())},
                           2);
}

void infer_grouped_linear(OpCall& call) {
  const TensorType& rows = call.input(0);
  const auto& attrs = call.attrs<fb::GroupedLinearT>();
  call.require(rows.shape.size() == 2 && rows.dtype == call.precision().compute,
               "needs dispatched rows[R,I], not {}", rows.to_string());
  call.require(call.input(1).shape == std::vector<int64_t>{int64_t{attrs.experts} + 1},
               "offsets {} are not those of {} experts", call.input(1).to_string(), attrs.experts);
  call.set_output(0, {rows.dtype, with_cols(rows.shape, attrs.out_features)});
}

std::vector<ParameterSpec> grouped_linear_parameters(const OpCall& call) {
  const auto& attrs = call.attrs<fb::GroupedLinearT>();
  call.require(attrs.experts > 0 && attrs.out_features > 0, "experts and out_features must be positive");
  const double active =
      static_cast<double>(call.input(0).rows()) / static_cast<double>(call.tokens() * attrs.experts);
  std::vector<ParameterSpec> specs = {{.name = "weight",
                                       .shape = {attrs.experts, attrs.out_features, call.input(0).cols()},
                                       .init_std = attrs.init_std,
                                       .active_fraction = active}};
  if (attrs.bias)
    specs.push_back(
        {.name = "bias", .shape = {attrs.experts, attrs.out_features}, .active_fraction = active});
  return specs;
}

double grouped_linear_flops(const OpCall& call) {
  return grouped_flops(call.input(0), call.output(0).cols());
}

void grouped_linear_rule(BackwardContext& b) {
  b.emit("grouped_linear_bwd_input", {b.grad(0), b.input(1), b.input(2)}, {0});
  b.emit("grouped_linear_bwd_weight", {b.grad(0), b.input(0), b.input(1)}, {2});
  if (b.input(3) != kNoValue) b.emit("grouped_bias_bwd", {b.grad(0), b.input(1)}, {3});
}

void infer_grouped_linear_bwd_input(OpCall& call) {
  call.set_output(0, {call.input(0).dtype, with_cols(call.input(0).shape, call.input(2).cols())});
}

void infer_grouped_linear_swiglu(OpCall& call) {
  infer_grouped_linear(call);
  const TensorType& h = call.output(0);
  call.require(h.cols() % 2 == 0, "needs interleaved gate and up columns, not {}", h.to_string());
  call.set_output(1, {h.dtype, with_cols(h.shape, h.cols() / 2)});
}

void infer_grouped_linear_bwd_input_swiglu(OpCall& call) {
  const TensorType& h = call.input(3);
  call.require(h.cols() == 2 * call.input(2).cols(), "gates and ups {} do not fit weight {}", h.to_string(),
               call.input(2).to_string());
  call.set_output(0, h);
  if (call.has_output(1)) call.set_output(1, {h.dtype, with_cols(h.shape, h.cols() / 2)});
}

double grouped_linear_bwd_input_swiglu_flops(const OpCall& call) {
  return grouped_flops(call.input(0), call.input(2).cols());
}

void infer_grouped_linear_bwd_weight(OpCall& call) {
  set_gradient(call, 0,
               {call.attrs<fb::GroupedLinearT>().experts, call.input(0).cols(), call.input(1).cols()});
  if (!call.has_output(1)) return;
  const std::vector<int64_t> shape = call.output(0).shape;
  call.set_output(1, {fb::DType::F64, squares_shape(shape[0], shape[1], shape[2])});
}

double grouped_linear_bwd_weight_flops(const OpCall& call) {
  return grouped_flops(call.input(0), call.input(1).cols());
}

void infer_grouped_bias_bwd(OpCall& call) {
  set_gradient(call, 0, {call.attrs<fb::GroupedLinearT>().experts, call.input(0).cols()});
}

double grouped_bias_bwd_flops(const OpCall& call) { return static_cast<double>(call.input(0).elements()); }

void infer_combine(OpCall& call) {
  const TensorType& rows = call.input(0);
  const TensorType& weights = call.input(1);
  call.require(
      rows.shape.size() == 2 && weights.elements() == rows.shape[0] && call.input(2).shape == weights.shape,
      "routing {} does not fit rows {}", weights.to_string(), rows.to_string());
  set_output_with_residual(call, {rows.dtype, with_cols(weights.shape, rows.cols())}, 4);
}

double combine_flops(const OpCall& call) { return 2 * static_cast<double>(call.input(0).elements()); }

void combine_rule(BackwardContext& b) {
  b.emit("combine_bwd", {b.grad(0), b.input(0), b.input(1), b.input(2), b.input(3)}, {0, 1});
}

void infer_combine_bwd(OpCall& call) {
  call.set_output(0, call.input(1));
  call.set_output(1, call.input(2));
}

double combine_bwd_flops(const OpCall& call) { return 3 * static_cast<double>(call.input(1).elements()); }

std::vector<Sample> router_samples() {
  return {
      {"top 2 of 5",
       {{"x", {2, 3, 5}}},
       R"([{name: "y", inputs: ["x"], op_type: "Router", op: {top_k: 2}}])"},
      {"not renormalised",
       {{"x", {4, 6}}},
       R"([{name: "y", inputs: ["x"], op_type: "Router", op: {top_k: 3, renormalise: false}}])"},
      {"all of them", {{"x", {4, 3}}}, R"([{name: "y", inputs: ["x"], op_type: "Router", op: {top_k: 3}}])"},
      {"top 2 of 40", {{"x", {5, 40}}}, R"([{name: "y", inputs: ["x"], op_type: "Router", op: {top_k: 2}}])"},
      {"one", {{"x", {4, 3}}}, R"([{name: "y", inputs: ["x"], op_type: "Router", op: {top_k: 1}}])"}};
}

/// Expert choice, experts and combination together: with ties the slots of a token may swap, their sum may
/// not.
std::vector<Sample> combine_samples() {
  const std::string index = R"([
    {name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {experts: 4}},
    {name: "y", inputs: ["rows", "weights", "index.inverse", "index.permutation"], op_type: "Combine", op: {}}])";
  const std::string with_residual = R"([
    {name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {experts: 4}},
    {name: "rows.combined", inputs: ["rows", "weights", "index.inverse", "index.permutation"], op_type: "Combine", op: {}},
    {name: "y", inputs: ["r", "rows.combined"], op_type: "Add", op: {}}])";
  const std::string layer = R"([
    {name: "router", inputs: ["logits"], op_type: "Router", op: {top_k: 2}},
    {name: "index", inputs: ["router.experts"], op_type: "ExpertIndex", op: {experts: 4}},
    {name: "dispatch", inputs: ["x", "index.permutation", "index.inverse"], op_type: "Dispatch", op: {}},
    {name: "experts", inputs: ["dispatch", "index.offsets"], op_type: "GroupedLinear",
     op: {experts: 4, out_features: 5, bias: true}},
    {name: "y", inputs: ["experts", "router.weights", "index.inverse", "index.permutation"], op_type: "Combine", op: {}}])";
  return {{"an empty expert",
           {{"rows", {30, 6}}, {"weights", {3, 5, 2}}, {"experts", {3, 5, 2}, Fill::kDistinctExperts, 4}},
           index},
          {"one choice",
           {{"rows", {7, 6}}, {"weights", {7, 1}}, {"experts", {7, 1}, Fill::kOneExpert, 4}},
           index},
          {"long rows",
           {{"rows", {2, 150}}, {"weights", {1, 2}}, {"experts", {1, 2}, Fill::kDistinctExperts, 4}},
           index},
          {"residual",
           {{"rows", {30, 6}},
            {"weights", {3, 5, 2}},
            {"experts", {3, 5, 2}, Fill::kDistinctExperts, 4},
            {"r", {3, 5, 6}}},
           with_residual},
          {"top-k ties", {{"x", {5, 3}}, {"logits", {5, 4}, Fill::kTies}}, layer}};
}

std::vector<Sample> dispatch_samples() {
  const std::string nodes = R"([
    {name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {experts: 4}},
    {name: "y", inputs: ["x", "index.permutation", "index.inverse"], op_type: "Dispatch", op: {}}])";
  // x is read again, by what makes rows of the same number.
  const std::string twice = R"([
    {name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {experts: 4}},
    {name: "rows", inputs: ["x", "index.permutation", "index.inverse"], op_type: "Dispatch", op: {}},
    {name: "gate", inputs: ["x"], op_type: "Linear", op: {out_features: 2, full_precision: true}},
    {name: "back", inputs: ["rows", "gate", "index.inverse", "index.permutation"], op_type: "Combine", op: {}},
    {name: "y", inputs: ["back"], op_type: "Silu", op: {}}])";
  return {
      {"an empty expert", {{"x", {3, 5, 6}}, {"experts", {3, 5, 2}, Fill::kDistinctExperts, 4}}, nodes},
      {"all on the same", {{"x", {7, 6}}, {"experts", {7, 1}, Fill::kOneExpert, 4}}, nodes},
      {"long rows", {{"x", {1, 150}}, {"experts", {1, 2}, Fill::kDistinctExperts, 4}}, nodes},
      {"a second gradient", {{"x", {3, 5, 6}}, {"experts", {3, 5, 2}, Fill::kDistinctExperts, 4}}, twice}};
}

/// Nodes of experts as models have them, which are fused.
std::string swiglu_layer(bool bias) {
  return fmt::format(R"([
    {{name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {{experts: 4}}}},
    {{name: "gate_up", inputs: ["x", "index.offsets"], op_type: "GroupedLinear",
      op: {{experts: 4, out_features: 10, bias: {0}, init_std: 1}}}},
    {{name: "swiglu", inputs: ["gate_up"], op_type: "Swiglu", op: {{}}}},
    {{name: "y", inputs: ["swiglu", "index.offsets"], op_type: "GroupedLinear",
      op: {{experts: 4, out_features: 3, bias: {0}, init_std: 1}}}}])",
                     bias);
}

std::vector<Sample> grouped_linear_samples() {
  const std::string nodes = R"([
    {name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {experts: 4}},
    {name: "y", inputs: ["x", "index.offsets"], op_type: "GroupedLinear",
     op: {experts: 4, out_features: 5, bias: true, init_std: 1}}])";
  return {{"an empty expert", {{"x", {30, 3}}, {"experts", {15, 2}, Fill::kDistinctExperts, 4}}, nodes},
          {"all on the same", {{"x", {14, 3}}, {"experts", {7, 2}, Fill::kOneExpert, 4}}, nodes},
          {"one row", {{"x", {1, 3}}, {"experts", {1, 1}, Fill::kDistinctExperts, 4}}, nodes},
          {"SwiGLU between",
           {{"x", {10, 3}}, {"experts", {5, 2}, Fill::kDistinctExperts, 4}},
           swiglu_layer(false)},
          {"SwiGLU between, biased",
           {{"x", {14, 3}}, {"experts", {7, 2}, Fill::kOneExpert, 4}},
           swiglu_layer(true)},
          {"SwiGLU between, its activation kept",
           {{"x", {10, 3}}, {"experts", {5, 2}, Fill::kDistinctExperts, 4}},
           swiglu_layer(false),
           true}};
}

}  // namespace

const OpDef router = {.key = "router",
                      .attrs = fb::Op::Router,
                      .infer = infer_router,
                      .flops = flops_per_element<8>,
                      .in_models = true,
                      .backward = router_rule,
                      .gradient_outputs = 0b101,
                      .samples = router_samples};
const OpDef router_bwd = {
    .key = "router_bwd", .attrs = fb::Op::Router, .infer = infer_router_bwd, .flops = flops_per_element<6>};

const OpDef expert_index = {.key = "expert_index",
                            .attrs = fb::Op::ExpertIndex,
                            .infer = infer_expert_index,
                            .in_models = true,
                            .backward = no_backward};

const OpDef dispatch = {.key = "dispatch",
                        .attrs = fb::Op::Dispatch,
                        .infer = infer_dispatch,
                        .flops = flops_per_element<0>,
                        .in_models = true,
                        .backward = dispatch_rule,
                        .samples = dispatch_samples};
const OpDef dispatch_bwd = {.key = "dispatch_bwd", .attrs = fb::Op::Dispatch, .infer = infer_dispatch_bwd};

const OpDef grouped_linear = {.key = "grouped_linear",
                              .attrs = fb::Op::GroupedLinear,
                              .infer = infer_grouped_linear,
                              .flops = grouped_linear_flops,
                              .in_models = true,
                              .parameters = grouped_linear_parameters,
                              .backward = grouped_linear_rule,
                              .samples = grouped_linear_samples};
const OpDef grouped_linear_bwd_input = {.key = "grouped_linear_bwd_input",
                                        .attrs = fb::Op::GroupedLinear,
                                        .infer = infer_grouped_linear_bwd_input,
                                        .flops = grouped_linear_flops};
const OpDef grouped_linear_swiglu = {.key = "grouped_linear_swiglu",
                                     .attrs = fb::Op::GroupedLinear,
                                     .infer = infer_grouped_linear_swiglu,
                                     .flops = grouped_linear_flops};
const OpDef grouped_linear_bwd_input_swiglu = {.key = "grouped_linear_bwd_input_swiglu",
                                               .attrs = fb::Op::GroupedLinear,
                                               .infer = infer_grouped_linear_bwd_input_swiglu,
                                               .flops = grouped_linear_bwd_input_swiglu_flops};
const OpDef grouped_linear_bwd_weight = {.key = "grouped_linear_bwd_weight",
                                         .attrs = fb::Op::GroupedLinear,
                                         .infer = infer_grouped_linear_bwd_weight,
                                         .flops = grouped_linear_bwd_weight_flops};
const OpDef grouped_bias_bwd = {.key = "grouped_bias_bwd",
                                .attrs = fb::Op::GroupedLinear,
                                .infer = infer_grouped_bias_bwd,
                                .flops = grouped_bias_bwd_flops};

const OpDef combine = {.key = "combine",
                       .attrs = fb::Op::Combine,
                       .infer = infer_combine,
                       .flops = combine_flops,
                       .in_models = true,
                       .backward = combine_rule,
                       .samples = combine_samples};
const OpDef combine_bwd = {
    .key = "combine_bwd", .attrs = fb::Op::Combine, .infer = infer_combine_bwd, .flops = combine_bwd_flops};

}  // namespace moec::ops
