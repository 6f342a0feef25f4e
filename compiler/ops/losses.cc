// Losses: cross-entropy, load balancing, router z-loss. Each makes one scalar in the accumulation type.
#include "compiler/ops/ops.h"

namespace moec::ops {
namespace {

double input_flops(const OpCall& call) {
  double elements = 0;
  for (size_t i = 0; i < call.input_count(); ++i) {
    const int index = static_cast<int>(i);
    if (call.has_input(index))
      elements = std::max(elements, static_cast<double>(call.input(index).elements()));
  }
  return 4 * elements;
}

void infer_cross_entropy(OpCall& call) {
  const TensorType& logits = call.input(0);
  const TensorType& targets = call.input(1);
  call.require(logits.dtype == call.precision().compute || logits.dtype == call.precision().accumulator(),
               "needs logits in {} or {}, not {}", dtype_name(call.precision().compute),
               dtype_name(call.precision().accumulator()), logits.to_string());
  call.require(
      targets.dtype == fb::DType::I32 && !logits.shape.empty() && targets.elements() == logits.rows(),
      "targets {} do not fit logits {}", targets.to_string(), logits.to_string());
  call.set_output(0, scalar_type(call));
  call.set_output(1, {call.precision().accumulator(), {logits.rows()}});
}

void cross_entropy_rule(BackwardContext& b) {
  b.emit("cross_entropy_bwd", {b.grad(0), b.input(0), b.input(1), b.output(1)}, {0});
}

void infer_cross_entropy_gradient(OpCall& call) {
  call.set_output(0, scalar_type(call));
  call.set_output(1, call.input(0));
}

/// Products of all rows with the weight: for the logits, and with gradients twice more.
double linear_cross_entropy_flops(const OpCall& call) {
  const TensorType &x = call.input(0), &weight = call.input(1);
  const double logits = static_cast<double>(x.rows()) * static_cast<double>(weight.rows());
  return logits * ((call.has_input(3) ? 6 : 2) * static_cast<double>(x.cols()) + 4);
}

void infer_linear_cross_entropy(OpCall& call) {
  const TensorType &x = call.input(0), &weight = call.input(1), &targets = call.input(2);
  call.require(x.dtype == call.precision().compute && !x.shape.empty() && weight.cols() == x.cols(),
               "weight {} does not fit x {}", weight.to_string(), x.to_string());
  call.require(targets.dtype == fb::DType::I32 && targets.elements() == x.rows(),
               "targets {} do not fit x {}", targets.to_string(), x.to_string());
  call.set_output(0, scalar_type(call));
  if (!call.has_input(3)) return;
  call.set_output(1, x);
  set_gradient(call, 2, weight.shape);
}

void infer_second(OpCall& call) { call.set_output(0, call.input(1)); }

void infer_aux_loss(OpCall& call) {
  call.require(!call.input(0).shape.empty() && call.input(0).dtype == call.precision().accumulator() &&
                   call.input(1).shape == std::vector<int64_t>{call.input(0).cols() + 1},
               "offsets {} do not fit probabilities {}", call.input(1).to_string(),
               call.input(0).to_string());
  call.require_not_negative("coefficient", call.attrs<fb::AuxLossT>().coefficient);
  call.set_output(0, scalar_type(call));
}

void aux_loss_rule(BackwardContext& b) { b.emit("aux_loss_bwd", {b.grad(0), b.input(0), b.input(1)}, {0}); }

void infer_router_z_loss(OpCall& call) {
  call.require(!call.input(0).shape.empty() && call.input(0).dtype == call.precision().accumulator(),
               "needs logits in {}, not {}", dtype_name(call.precision().accumulator()),
               call.input(0).to_string());
  call.require_not_negative("coefficient", call.attrs<fb::RouterZLossT>().coefficient);
  call.set_output(0, scalar_type(call));
}

void router_z_loss_rule(BackwardContext& b) { b.emit("router_z_loss_bwd", {b.grad(0), b.input(0)}, {0}); }

std::vector<Sample> cross_entropy_samples() {
  const std::string nodes = R"([{name: "y", inputs: ["x", "t"], op_type: "CrossEntropy", op: {}}])";
  return {{"some ignored", {{"x", {2, 5, 7}}, {"t", {2, 5}, Fill::kTargets, 7}}, nodes},
          {"one row", {{"x", {1, 33}}, {"t", {1}, Fill::kTokens, 33}}, nodes}};
}

std::vector<Sample> linear_cross_entropy_samples() {
  return {{"some ignored", {{"x", {3, 7, 5}}, {"t", {3, 7}, Fill::kTargets, 11}}, R"([
             {name: "logits", inputs: ["x"], op_type: "Linear", op: {out_features: 11, init_std: 1}},
             {name: "y", inputs: ["logits", "t"], op_type: "CrossEntropy", op: {}}])"}};
}

std::vector<Sample> aux_loss_samples() {
  const char* nodes = R"([
    {{name: "router", inputs: ["x"], op_type: "Router", op: {{top_k: 2}}}},
    {{name: "index", inputs: ["router.experts"], op_type: "ExpertIndex", op: {{experts: 5}}}},
    {{name: "y", inputs: ["router.probs", "index.offsets"], op_type: "AuxLoss", op: {{coefficient: 0.5, form: "{}"}}}}])";
  return {{"per assignment", {{"x", {3, 4, 5}}}, fmt::format(fmt::runtime(nodes), "PerAssignment")},
          {"per token", {{"x", {70, 5}}}, fmt::format(fmt::runtime(nodes), "PerToken")}};
}

std::vector<Sample> router_z_loss_samples() {
  return {{"rows",
           {{"x", {3, 4, 5}}},
           R"([{name: "y", inputs: ["x"], op_type: "RouterZLoss", op: {coefficient: 0.5}}])"}};
}

}  // namespace

const OpDef cross_entropy = {.key = "cross_entropy",
                             .attrs = fb::Op::CrossEntropy,
                             .infer = infer_cross_entropy,
                             .flops = input_flops,
                             .in_models = true,
                             .backward = cross_entropy_rule,
                             .is_loss = true,
                             .samples = cross_entropy_samples};
const OpDef cross_entropy_bwd = {
    .key = "cross_entropy_bwd", .attrs = fb::Op::CrossEntropy, .infer = infer_second, .flops = input_flops};

/// Made by the fuse pass of a CrossEntropy and its gradient.
const OpDef cross_entropy_gradient = {.key = "cross_entropy_gradient",
                                      .attrs = fb::Op::CrossEntropy,
                                      .infer = infer_cross_entropy_gradient,
                                      .flops = input_flops,
                                      .samples = cross_entropy_samples};

/// Made by the fuse pass of a Linear and the CrossEntropy of its output; with `dloss` also of their
/// gradients.
const OpDef linear_cross_entropy = {.key = "linear_cross_entropy",
                                    .attrs = fb::Op::CrossEntropy,
                                    .infer = infer_linear_cross_entropy,
                                    .flops = linear_cross_entropy_flops,
                                    .samples = linear_cross_entropy_samples};

const OpDef aux_loss = {.key = "aux_loss",
                        .attrs = fb::Op::AuxLoss,
                        .infer = infer_aux_loss,
                        .flops = input_flops,
                        .in_models = true,
                        .backward = aux_loss_rule,
                        .is_loss = true,
                        .samples = aux_loss_samples};
const OpDef aux_loss_bwd = {.key = "aux_loss_bwd", .attrs = fb::Op::AuxLoss, .infer = infer_second};

const OpDef router_z_loss = {.key = "router_z_loss",
                             .attrs = fb::Op::RouterZLoss,
                             .infer = infer_router_z_loss,
                             .flops = input_flops,
                             .in_models = true,
                             .backward = router_z_loss_rule,
                             .is_loss = true,
                             .samples = router_z_loss_samples};
const OpDef router_z_loss_bwd = {
    .key = "router_z_loss_bwd", .attrs = fb::Op::RouterZLoss, .infer = infer_second, .flops = input_flops};

}  // namespace moec::ops
