#include "tests/support/training.h"

#include <random>
#include <utility>

#include "compiler/compile.h"
#include "compiler/frontend.h"

namespace moec::test {
namespace {

constexpr uint64_t kSeed = 11;

Result<runtime::Session> initialised_session(const fb::ModelT& model, std::unique_ptr<runtime::Device> device,
                                             const CompileOptions& options) {
  const std::vector<uint8_t> bytes = serialize_plan(compile(model, options));
  MOEC_ASSIGN_OR_RETURN(auto plan, runtime::parse_plan(std::string(bytes.begin(), bytes.end()), model.name));
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, runtime::Session::create(std::move(plan), std::move(device),
                                                                           {.poison_activations = true}));
  MOEC_RETURN_IF_ERROR(session.initialise(kSeed, model.recipe->lr));
  return session;
}

}  // namespace

fb::ModelT example_model(const std::string& name) {
  return read_model(MOEC_SOURCE_DIR "/schema/examples/" + name + ".json");
}

void set_experts(fb::ModelT& model, uint32_t experts) {
  for (const auto& block : model.blocks)
    for (const auto& node : block->nodes) {
      if (node->name == "gate") node->op.AsLinear()->out_features = experts;
      if (auto* index = node->op.AsExpertIndex()) index->experts = experts;
      if (auto* grouped = node->op.AsGroupedLinear()) grouped->experts = experts;
    }
}

std::vector<int32_t> learnable_tokens(size_t count, int32_t vocab, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<int32_t> tokens(count);
  for (size_t i = 1; i < count; ++i) {
    const int32_t surprise = rng() % 4 == 0 ? static_cast<int32_t>(rng() % static_cast<uint64_t>(vocab)) : 1;
    tokens[i] = (3 * tokens[i - 1] + surprise) % vocab;
  }
  return tokens;
}

Result<runtime::Session> training_session(const fb::ModelT& model, std::unique_ptr<runtime::Device> device,
                                          const CompileOptions& options) {
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, initialised_session(model, std::move(device), options));
  const auto vocab = static_cast<int32_t>(session.vocab_size());
  MOEC_RETURN_IF_ERROR(
      session.set_data(learnable_tokens(60'000, vocab, 1), learnable_tokens(10'000, vocab, 2)));
  return session;
}

Result<runtime::Session> host_batch_session(const fb::ModelT& model,
                                            std::unique_ptr<runtime::Device> device) {
  MOEC_ASSIGN_OR_RETURN(runtime::Session session,
                        initialised_session(model, std::move(device), {.host_batches = true}));
  const std::vector<int32_t> ones(static_cast<size_t>(session.batch_size() * session.seq_len()), 1);
  MOEC_RETURN_IF_ERROR(session.write_batch(ones, ones));
  return session;
}

}  // namespace moec::test
