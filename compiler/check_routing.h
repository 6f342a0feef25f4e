// Routing that belongs together.
#pragma once

#include "compiler/graph.h"

namespace moec {

/// Throws CompileError where a node of a model is given routing (experts, offsets, permutation, inverse) that
/// is none, or not that of its rows: kernels take it for places in memory.
void check_routing(const Graph& graph);

}  // namespace moec
