// Reverse-mode differentiation of a graph by the backward rules of its ops.
#pragma once

#include <utility>
#include <vector>

#include "compiler/graph.h"

namespace moec {

/// Name of the gradient memory of a parameter.
std::string gradient_name(const std::string& parameter);

/// Appends the backward nodes of all nodes that the seeded values depend on, in reverse order. `seeds` pairs
/// a value with its gradient. Gradients of parameters are written to their gradient memory: overwritten by
/// the first contribution unless `accumulate`, added to by the others. Returns the gradient of every value
/// that has one (kNoValue elsewhere), indexed by ValueId.
std::vector<ValueId> add_backward(Graph& graph, const std::vector<std::pair<ValueId, ValueId>>& seeds,
                                  bool accumulate);

}  // namespace moec
