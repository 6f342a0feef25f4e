// How large a training step a given memory holds.
#pragma once

#include <cstdint>
#include <functional>

#include "compiler/compile.h"

namespace moec {

/// Told of every step that is tried.
using OnTry = std::function<void(const fb::RecipeT& recipe)>;

/// The largest batch size that is tried.
constexpr uint32_t kMostBatchSize = 1u << 16;

/// The largest batch size (sequences of a micro-batch, the recipe otherwise unchanged) that fits into
/// `budget` bytes, with or without recompute; 0 for none. The search starts around `guess`.
uint32_t largest_batch_size(const fb::ModelT& model, uint64_t budget, bool recompute,
                            const CompileOptions& options = {}, uint32_t guess = 1,
                            const OnTry& on_try = nullptr);

/// The largest sequence length up to the model's context that fits, a multiple of 64 unless it is the
/// context; 0 for none.
uint32_t largest_seq_len(const fb::ModelT& model, uint64_t budget, bool recompute,
                         const CompileOptions& options = {}, uint32_t guess = 1,
                         const OnTry& on_try = nullptr);

}  // namespace moec
