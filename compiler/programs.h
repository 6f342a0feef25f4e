// The programs of a plan as graphs.
#pragma once

#include "compiler/graph.h"
#include "compiler/storage.h"
#include "model_generated.h"

namespace moec {

/// Fills every parameter with its initial values.
Graph init_program(const std::vector<Parameter>& parameters, const Precision& precision);

/// One micro-batch: load (unless the host writes tokens and targets itself), forward, backward, record the
/// losses. Gradients are overwritten when grad_accum is 1 and added to otherwise. `parameters` receives the
/// model's.
Graph accumulate_program(const fb::ModelT& model, const fb::RecipeT& recipe, const Precision& precision,
                         int64_t window_tokens, bool host_batches, std::vector<Parameter>& parameters);

/// One optimizer step: norm and clip, learning rate, AdamW over every group, zeroed gradients when they
/// accumulate, metrics.
Graph apply_program(const Storage& storage, const fb::RecipeT& recipe, const Precision& precision);

/// The loss of one batch of consecutive sequences, without gradients.
Graph evaluate_program(const fb::ModelT& model, const fb::RecipeT& recipe, const Precision& precision,
                       int64_t window_tokens, bool host_batches);

/// Logits [1,1,V] of one position of one sequence. `logits` receives their type.
Graph prefill_program(const fb::ModelT& model, const fb::RecipeT& recipe, const Precision& precision,
                      TensorType& logits);

/// Everything that a plan is made of, before memory is planned.
struct Programs {
  std::vector<Parameter> parameters;
  Storage storage;
  Graph init, accumulate, apply, evaluate, prefill;
  uint64_t saved_by_order = 0;
};

}  // namespace moec
