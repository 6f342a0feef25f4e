// Ops that the compiler adds around a model: initialisation, data, bookkeeping, optimizer. Those that write
// persistent memory get their output types from the memory itself.
#include "compiler/ops/ops.h"

namespace moec::ops {
namespace {

double no_flops(const OpCall&) { return 0; }

/// Output i is a further version of input i.
template <int kOutputs>
void infer_update(OpCall& call) {
  for (int i = 0; i < kOutputs; ++i) call.set_output(i, call.input(i));
}

void infer_init_normal(OpCall& call) {
  const auto& attrs = call.attrs<fb::InitNormalT>();
  call.require(attrs.std >= 0, "standard deviation {} is negative", attrs.std);
}

void infer_seed_gradient(OpCall& call) { call.set_output(0, scalar_type(call)); }

void infer_load_batch(OpCall& call) {
  call.require(call.input(0).dtype == fb::DType::I32 && call.input(0).shape.size() == 1,
               "the token window must be i32[W]");
}

/// Of the window only the sequences of the batch are read, for tokens and targets.
double load_batch_bytes(const OpCall& call) {
  return 2.0 * static_cast<double>(call.output(0).bytes() + call.output(1).bytes());
}

double grad_norm_flops(const OpCall& call) {
  double flops = call.has_input(1) ? static_cast<double>(call.input(1).elements()) : 0;
  for (size_t i = 2; i < call.input_count(); ++i)
    flops += 2.0 * static_cast<double>(call.input(static_cast<int>(i)).elements());
  return flops;
}

void infer_adamw(OpCall& call) {
  call.require(call.input(0).shape == call.input(1).shape && call.input(2).shape == call.input(0).shape &&
                   call.input(3).shape == call.input(0).shape,
               "parameter, gradient and moment ranges differ in size");
  const fb::DType moments = call.input(2).dtype, computed = call.precision().accumulator();
  call.require(call.input(3).dtype == moments &&
                   (moments == computed || (moments == fb::DType::BF16 && computed == fb::DType::F32)),
               "moments {} and {} are neither {} nor bf16", call.input(2).to_string(),
               call.input(3).to_string(), dtype_name(computed));
  call.set_output(0, call.input(0));
  call.set_output(1, call.input(2));
  call.set_output(2, call.input(3));
  const fb::DType dtype = call.input(0).dtype;
  const bool halves = dtype == fb::DType::BF16, copies = dtype == fb::DType::F16;
  call.require(call.has_input(4) == (halves || copies),
               "16-bit parameters need f32 masters, others have none");
  if (!call.has_input(4)) return;
  call.require(call.input(4).shape == call.input(0).shape &&
                   call.input(4).dtype == (halves ? fb::DType::U16 : fb::DType::F32),
               "the masters of {} are {}", call.input(0).to_string(), call.input(4).to_string());
  call.set_output(3, call.input(4));
}

void infer_select_token(OpCall& call) {
  const TensorType& x = call.input(0);
  call.require(x.shape.size() == 3, "needs x[B,S,D], not {}", x.to_string());
  call.set_output(0, {x.dtype, {x.shape[0], 1, x.shape[2]}});
}

}  // namespace

const OpDef init_normal = {
    .key = "init_normal", .attrs = fb::Op::InitNormal, .infer = infer_init_normal, .flops = no_flops};
const OpDef fill = {.key = "fill", .attrs = fb::Op::Fill, .infer = [](OpCall&) {}, .flops = no_flops};
const OpDef seed_gradient = {
    .key = "seed_gradient", .attrs = fb::Op::SeedGradient, .infer = infer_seed_gradient, .flops = no_flops};
const OpDef load_batch = {.key = "load_batch",
                          .attrs = fb::Op::LoadBatch,
                          .infer = infer_load_batch,
                          .flops = no_flops,
                          .bytes = load_batch_bytes};
const OpDef record_loss = {
    .key = "record_loss", .attrs = fb::Op::RecordLoss, .infer = infer_update<1>, .flops = no_flops};
const OpDef lr_schedule = {
    .key = "lr_schedule", .attrs = fb::Op::LrSchedule, .infer = infer_update<1>, .flops = no_flops};
const OpDef grad_norm = {
    .key = "grad_norm", .attrs = fb::Op::GradNorm, .infer = infer_update<1>, .flops = grad_norm_flops};
const OpDef adamw = {
    .key = "adamw", .attrs = fb::Op::AdamW, .infer = infer_adamw, .flops = flops_per_element<14>};
const OpDef end_step = {
    .key = "end_step", .attrs = fb::Op::EndStep, .infer = infer_update<2>, .flops = no_flops};
const OpDef select_token = {
    .key = "select_token", .attrs = fb::Op::SelectToken, .infer = infer_select_token, .flops = no_flops};

}  // namespace moec::ops
