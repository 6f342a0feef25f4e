// Small training runs of the example models, on any device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "compiler/compile.h"
#include "model_generated.h"
#include "runtime/session.h"

namespace moec::test {

/// The model of schema/examples with this name.
fb::ModelT example_model(const std::string& name);

/// Gives every layer of the examples' mixtures `experts` experts.
void set_experts(fb::ModelT& model, uint32_t experts);

/// `count` tokens below `vocab`, the same for the same seed, in which each token says something about the
/// next.
std::vector<int32_t> learnable_tokens(size_t count, int32_t vocab, uint64_t seed);

/// An initialised session with activations filled with NaN, and 60,000 learnable tokens to train and 10,000
/// to validate on.
Result<runtime::Session> training_session(const fb::ModelT& model, std::unique_ptr<runtime::Device> device,
                                          const CompileOptions& options = {.window_tokens = 1 << 16});

/// The same for batches that the host writes; the first is of token 1 throughout.
Result<runtime::Session> host_batch_session(const fb::ModelT& model, std::unique_ptr<runtime::Device> device);

}  // namespace moec::test
