// Token and learned position embeddings.
#include "compiler/ops/ops.h"

namespace moec::ops {
namespace {

void infer_embedding(OpCall& call) {
  const auto& attrs = call.attrs<fb::EmbeddingT>();
  call.require(call.input(0).dtype == fb::DType::I32 && call.input(0).shape.size() == 2,
               "tokens must be i32[B,S], not {}", call.input(0).to_string());
  std::vector<int64_t> shape = call.input(0).shape;
  shape.push_back(attrs.dim);
  call.set_output(0, {call.precision().compute, shape});
}

/// Of the table only the rows of the tokens are read.
double embedding_bytes(const OpCall& call) {
  return static_cast<double>(call.input(0).bytes() + 2 * call.output(0).bytes());
}

std::vector<ParameterSpec> embedding_parameters(const OpCall& call) {
  const auto& attrs = call.attrs<fb::EmbeddingT>();
  call.require(attrs.vocab_size > 0 && attrs.dim > 0, "vocab_size and dim must be positive");
  return {{.name = "weight", .shape = {attrs.vocab_size, attrs.dim}, .init_std = attrs.init_std}};
}

void embedding_rule(BackwardContext& b) { b.emit("embedding_bwd", {b.input(0), b.grad(0)}, {1}); }

void infer_embedding_bwd(OpCall& call) {
  const auto& attrs = call.attrs<fb::EmbeddingT>();
  set_gradient(call, 0, {attrs.vocab_size, attrs.dim});
}

std::vector<Sample> embedding_samples() {
  return {{"repeated tokens", {{"t", {2, 5}, Fill::kTokens, 7}}, R"([
    {name: "y", inputs: ["t"], op_type: "Embedding", op: {vocab_size: 9, dim: 6, init_std: 1}}])"},
          {"many tokens", {{"t", {3, 1500}, Fill::kTokens, 290}}, R"([
    {name: "y", inputs: ["t"], op_type: "Embedding", op: {vocab_size: 300, dim: 2, init_std: 1}}])"}};
}

void infer_position_embedding(OpCall& call) {
  const TensorType& x = call.input(0);
  const auto& attrs = call.attrs<fb::PositionEmbeddingT>();
  call.require(x.shape.size() == 3, "needs x[B,S,D], not {}", x.to_string());
  call.require(x.shape[1] <= attrs.context, "sequence of {} is longer than the context of {}", x.shape[1],
               attrs.context);
  infer_like_first(call);
}

std::vector<ParameterSpec> position_embedding_parameters(const OpCall& call) {
  const auto& attrs = call.attrs<fb::PositionEmbeddingT>();
  return {{.name = "weight", .shape = {attrs.context, call.input(0).cols()}, .init_std = attrs.init_std}};
}

void position_embedding_rule(BackwardContext& b) {
  b.pass(0, b.grad(0));
  b.emit("position_embedding_bwd", {b.grad(0)}, {1});
}

void infer_fused_embedding(OpCall& call) {
  const TensorType &tokens = call.input(0), &weight = call.input(1), &positions = call.input(2);
  call.require(tokens.dtype == fb::DType::I32 && tokens.shape.size() == 2, "tokens must be i32[B,S], not {}",
               tokens.to_string());
  call.require(positions.cols() == weight.cols() && tokens.cols() <= positions.rows(),
               "positions {} do not fit tokens {} and weight {}", positions.to_string(), tokens.to_string(),
               weight.to_string());
  call.set_output(0, {call.precision().compute, {tokens.rows(), tokens.cols(), weight.cols()}});
}

void infer_position_embedding_bwd(OpCall& call) {
  set_gradient(call, 0, {call.attrs<fb::PositionEmbeddingT>().context, call.input(0).cols()});
}

std::vector<Sample> fused_embedding_samples() {
  const auto sample = [](const char* name, int dim, const char* after) {
    return Sample{name,
                  {{"t", {2, 5}, Fill::kTokens, 7}},
                  fmt::format(R"([
    {{name: "e", inputs: ["t"], op_type: "Embedding", op: {{vocab_size: 9, dim: {}, init_std: 1}}}},
    {{name: "p", inputs: ["e"], op_type: "PositionEmbedding", op: {{context: 6, init_std: 1}}}}{}])",
                              dim, after)};
  };
  constexpr const char* kDropout = R"(,
    {name: "y", inputs: ["p"], op_type: "Dropout", op: {p: 0.3}})";
  return {sample("without dropout", 8, ""), sample("dropout", 8, kDropout),
          sample("dropout, ragged", 11, kDropout)};
}

std::vector<Sample> position_embedding_samples() {
  return {{"shorter than the context", {{"x", {3, 4, 5}}}, R"([
    {name: "y", inputs: ["x"], op_type: "PositionEmbedding", op: {context: 6, init_std: 1}}])"}};
}

}  // namespace

const OpDef embedding = {.key = "embedding",
                         .attrs = fb::Op::Embedding,
                         .infer = infer_embedding,
                         .flops = flops_per_element<0>,
                         .bytes = embedding_bytes,
                         .in_models = true,
                         .parameters = embedding_parameters,
                         .backward = embedding_rule,
                         .samples = embedding_samples};
const OpDef embedding_bwd = {
    .key = "embedding_bwd", .attrs = fb::Op::Embedding, .infer = infer_embedding_bwd};

const OpDef position_embedding = {.key = "position_embedding",
                                  .attrs = fb::Op::PositionEmbedding,
                                  .infer = infer_position_embedding,
                                  .in_models = true,
                                  .parameters = position_embedding_parameters,
                                  .backward = position_embedding_rule,
                                  .samples = position_embedding_samples};
/// Made by the fuse pass of an Embedding, the PositionEmbedding behind it and the Dropout of their sum.
const OpDef fused_embedding = {.key = "fused_embedding",
                               .attrs = fb::Op::Dropout,
                               .infer = infer_fused_embedding,
                               .bytes = embedding_bytes,
                               .samples = fused_embedding_samples};
const OpDef position_embedding_bwd = {.key = "position_embedding_bwd",
                                      .attrs = fb::Op::PositionEmbedding,
                                      .infer = infer_position_embedding_bwd};

}  // namespace moec::ops
