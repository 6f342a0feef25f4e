// Programs to plan: transformers and random ones.
#pragma once

#include <cstdint>
#include <random>

#include "planner/planner.h"

namespace moec::planner {

struct TransformerShape {
  int layers = 0;
  uint64_t tokens = 0, dim = 0, ffn = 0, top_k = 0, vocab = 0;
  uint64_t element = 2;  // bytes
};

/// Forward and backward of a pre-norm MoE transformer as steps and values: activations saved by the forward
/// pass are freed in reverse order, gradients and scratch come and go, elementwise ops share.
Problem transformer(const TransformerShape& shape);

/// A sound problem of `steps` steps with random sizes, fan-in, shares, workspaces and values that live out.
Problem random_problem(std::mt19937& random, int steps);

}  // namespace moec::planner
