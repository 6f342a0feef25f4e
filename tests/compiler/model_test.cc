// Whole models: the gradient of everything against central differences, post-norm blocks, repeated runs.
#include <doctest/doctest.h>

#include <cmath>

#include "compiler/compile.h"
#include "compiler/error.h"
#include "compiler/frontend.h"
#include "runtime/session.h"

namespace moec::test {
namespace {

using runtime::HostTensor;
using runtime::Session;

/// A post-norm block with learned positions and GELU experts with biases, then a pre-norm MoE block with
/// RoPE: between them most ops, dropout and both auxiliary losses included.
constexpr char kModel[] = R"({
  name: "everything", context: 8,
  blocks: [
    {name: "embedding", nodes: [
      {name: "tok", inputs: ["tokens"], op_type: "Embedding", op: {vocab_size: 11, dim: 8, init_std: 0.5}},
      {name: "pos", inputs: ["tok"], op_type: "PositionEmbedding", op: {context: 8, init_std: 0.5}},
      {name: "x", inputs: ["pos"], op_type: "Dropout", op: {p: 0.2}}]},
    {name: "post", nodes: [
      {name: "qkv", inputs: ["x"], op_type: "Linear", op: {out_features: 24, init_std: 0.5}},
      {name: "attention", inputs: ["qkv"], op_type: "Attention", op: {heads: 2, kv_heads: 2, head_dim: 4}},
      {name: "proj", inputs: ["attention"], op_type: "Linear", op: {out_features: 8, bias: true, init_std: 0.5}},
      {name: "sum", inputs: ["x", "proj"], op_type: "Add", op: {}},
      {name: "norm", inputs: ["sum"], op_type: "LayerNorm", op: {}},
      {name: "gate", inputs: ["norm"], op_type: "Linear", op: {out_features: 3, bias: true, full_precision: true, init_std: 1}},
      {name: "router", inputs: ["gate"], op_type: "Router", op: {top_k: 1, renormalise: false}},
      {name: "index", inputs: ["router.experts"], op_type: "ExpertIndex", op: {experts: 3}},
      {name: "dispatch", inputs: ["norm", "index.permutation", "index.inverse"], op_type: "Dispatch", op: {}},
      {name: "up", inputs: ["dispatch", "index.offsets"], op_type: "GroupedLinear", op: {experts: 3, out_features: 12, bias: true, init_std: 0.5}},
      {name: "gelu", inputs: ["up"], op_type: "Gelu", op: {}},
      {name: "down", inputs: ["gelu", "index.offsets"], op_type: "GroupedLinear", op: {experts: 3, out_features: 8, bias: true, init_std: 0.5}},
      {name: "combine", inputs: ["down", "router.weights", "index.inverse", "index.permutation"], op_type: "Combine", op: {}},
      {name: "sum2", inputs: ["norm", "combine"], op_type: "Add", op: {}},
      {name: "norm2", inputs: ["sum2"], op_type: "LayerNorm", op: {}},
      {name: "aux", inputs: ["router.probs", "index.offsets"], op_type: "AuxLoss", op: {coefficient: 0.1, form: "PerToken"}}]},
    {name: "pre", repeat: 2, carry: [{from: "norm2", to: "out"}], nodes: [
      {name: "norm", inputs: ["norm2"], op_type: "RmsNorm", op: {}},
      {name: "qkv", inputs: ["norm"], op_type: "Linear", op: {out_features: 16, bias: true, init_std: 0.5}},
      {name: "rope", inputs: ["qkv"], op_type: "Rope", op: {heads: 2, kv_heads: 1, head_dim: 4, ntk_alpha: 2}},
      {name: "attention", inputs: ["rope"], op_type: "Attention", op: {heads: 2, kv_heads: 1, head_dim: 4}},
      {name: "proj", inputs: ["attention"], op_type: "Linear", op: {out_features: 8, init_std: 0.5}},
      {name: "sum", inputs: ["norm2", "proj"], op_type: "Add", op: {}},
      {name: "norm3", inputs: ["sum"], op_type: "RmsNorm", op: {}},
      {name: "gate", inputs: ["norm3"], op_type: "Linear", op: {out_features: 4, full_precision: true, init_std: 1}},
      {name: "router", inputs: ["gate"], op_type: "Router", op: {top_k: 2}},
      {name: "index", inputs: ["router.experts"], op_type: "ExpertIndex", op: {experts: 4}},
      {name: "dispatch", inputs: ["norm3", "index.permutation", "index.inverse"], op_type: "Dispatch", op: {}},
      {name: "gate_up", inputs: ["dispatch", "index.offsets"], op_type: "GroupedLinear", op: {experts: 4, out_features: 12, init_std: 0.5}},
      {name: "swiglu", inputs: ["gate_up"], op_type: "Swiglu", op: {}},
      {name: "down", inputs: ["swiglu", "index.offsets"], op_type: "GroupedLinear", op: {experts: 4, out_features: 8, init_std: 0.5}},
      {name: "combine", inputs: ["down", "router.weights", "index.inverse", "index.permutation"], op_type: "Combine", op: {}},
      {name: "out", inputs: ["sum", "combine"], op_type: "Add", op: {}},
      {name: "aux", inputs: ["router.probs", "index.offsets"], op_type: "AuxLoss", op: {coefficient: 0.1}},
      {name: "z", inputs: ["gate"], op_type: "RouterZLoss", op: {coefficient: 0.05}}]},
    {name: "head", nodes: [
      {name: "logits", inputs: ["out"], op_type: "Linear", op: {out_features: 11, tied_to: "embedding.tok.weight"}},
      {name: "loss", inputs: ["logits", "targets"], op_type: "CrossEntropy", op: {}}]}],
  recipe: {batch_size: 2, seq_len: 5, dtype: "F64", grad_dtype: "F64"}})";

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result.ok(), result.error().message);
  return std::move(result).value();
}

void must(const Status& status) { REQUIRE_MESSAGE(status.ok(), status.error().message); }

Session make_session(const fb::ModelT& model) {
  const std::vector<uint8_t> bytes = serialize_plan(compile(model, {.host_batches = true}));
  auto plan = must(runtime::parse_plan(std::string(bytes.begin(), bytes.end()), model.name));
  Session session = must(Session::create(plan, runtime::make_cpu_device(), {.poison_activations = true}));
  must(session.initialise(3, model.recipe->lr));
  const int32_t tokens[] = {1, 4, 9, 0, 4, 10, 2, 2, 7, 3}, targets[] = {4, 9, 0, 4, 5, 2, 2, -1, 3, 8};
  must(session.write_batch(tokens, targets));
  return session;
}

/// The loss of the batch, auxiliary losses included; leaves the train state as it was.
double objective(Session& session, const TrainState& start) {
  must(session.device().write(session.plan().plan.io->train_state, 0, std::as_bytes(std::span(&start, 1))));
  must(session.device().run(fb::ProgramKind::Accumulate));
  const TrainState state = must(session.read_train_state());
  return state.loss + state.aux_loss;
}

}  // namespace

TEST_CASE("the gradient of a whole model equals central differences") {
  constexpr double kStep = 1e-5;
  Session session = make_session(parse_model(kModel, "everything"));
  const TrainState start = must(session.read_train_state());
  objective(session, start);
  const auto& parameters = session.plan().plan.parameters;
  std::vector<HostTensor> gradients;
  for (const auto& parameter : parameters) gradients.push_back(must(session.read_tensor(parameter->grad)));

  for (size_t p = 0; p < parameters.size(); ++p) {
    CAPTURE(parameters[p]->name);
    HostTensor value = must(session.read_parameter(p));
    double error = 0, scale = 1e-3;
    for (size_t i = 0; i < value.as<double>().size(); ++i) {
      const double x = value.as<double>()[i];
      const auto moved = [&](double to) {
        value.as<double>()[i] = to;
        must(session.write_parameter(value));
        return objective(session, start);
      };
      const double numeric = (moved(x + kStep) - moved(x - kStep)) / (2 * kStep);
      value.as<double>()[i] = x;
      error = std::max(error, std::abs(gradients[p].as<double>()[i] - numeric));
      scale = std::max(scale, std::abs(numeric));
    }
    must(session.write_parameter(value));
    CHECK(error / scale < 1e-6);
  }
}

TEST_CASE("a parameter that no loss depends on is refused by name") {
  const char* json =
      R"({name: "m", context: 8, recipe: {batch_size: 2, seq_len: 4}, blocks: [{name: "b", nodes: [
    {name: "x", inputs: ["tokens"], op_type: "Embedding", op: {vocab_size: 5, dim: 8}},
    {name: "norm", inputs: ["x"], op_type: "RmsNorm", op: {}},
    {name: "logits", inputs: ["x"], op_type: "Linear", op: {out_features: 5}},
    {name: "loss", inputs: ["logits", "targets"], op_type: "CrossEntropy", op: {}}]}]})";
  CHECK_THROWS_WITH_AS(compile(parse_model(json, "m.json")),
                       "b.norm.weight: no loss depends on this parameter", CompileError);
}

TEST_CASE("a micro-batch run twice gives the same bits, dropout included, and another counter another mask") {
  Session session = make_session(parse_model(kModel, "everything"));
  TrainState start = must(session.read_train_state());
  const double first = objective(session, start);
  CHECK(objective(session, start) == first);
  start.micro_batch += 1;
  CHECK(objective(session, start) != first);
}

TEST_CASE("accumulated gradients are the mean over micro-batches") {
  fb::ModelT model = parse_model(kModel, "everything");
  Session once = make_session(model);
  const TrainState start = must(once.read_train_state());
  objective(once, start);
  model.recipe->grad_accum = 2;
  Session twice = make_session(model);
  objective(twice, start);
  objective(twice, start);
  for (const auto& parameter : once.plan().plan.parameters) {
    CAPTURE(parameter->name);
    const HostTensor a = must(once.read_tensor(parameter->grad)),
                     b = must(twice.read_tensor(parameter->grad));
    for (size_t i = 0; i < a.as<double>().size(); ++i)
      CHECK(a.as<double>()[i] == doctest::Approx(b.as<double>()[i]).epsilon(1e-12));
  }
}

}  // namespace moec::test
