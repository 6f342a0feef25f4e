// How large a training step a given memory holds.
#pragma once

#include <cstdint>

#include "compiler/compile.h"

namespace moec {

/// The largest batch size (sequences of a micro-batch, the recipe otherwise unchanged) that fits into
/// `budget` bytes, with or without recompute; 0 for none.
uint32_t largest_batch_size(const fb::ModelT& model, uint64_t budget, bool recompute,
                            const CompileOptions& options = {});

/// The largest sequence length up to the model's context that fits, a multiple of 64 unless it is the
/// context; 0 for none.
uint32_t largest_seq_len(const fb::ModelT& model, uint64_t budget, bool recompute,
                         const CompileOptions& options = {});

}  // namespace moec
