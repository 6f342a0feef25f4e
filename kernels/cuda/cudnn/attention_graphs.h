// Attention as graphs of operations that cuDNN knows as one.
#pragma once

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cudnn/graph.h"

namespace moec::cuda::cudnn {

/// Operands: queries, keys, values, y, lse, as in AttentionShape.
Graph forward_graph(const Library& library, const AttentionShape& shape, cudnnDataType_t type);

/// Operands: queries, keys, values, y, dy, lse, delta [B,H,S] of f32 as scratch memory, and the gradients of
/// queries, keys and values. The plan keeps the gradients of all scores, two bytes each, from which those of
/// the queries are one product. Without them, as cuDNN computes it otherwise, they are added up atomically.
Graph backward_graph(const Library& library, const AttentionShape& shape, cudnnDataType_t type);

}  // namespace moec::cuda::cudnn
