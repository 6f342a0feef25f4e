// Makes one op of several where that saves passes over memory.
#pragma once

#include "compiler/graph.h"

namespace moec {

/// Rewrites a program, its backward nodes included, by the rules of fuse.cc. Values that something reads
/// stay; what is computed is the same but for the rounding of values that are no longer stored. Not for
/// programs that see the same memory under several names (apply).
void fuse(Graph& graph);

/// The same for a Linear and the CrossEntropy of its output (fuse_head.cc); part of fuse().
void fuse_head(Graph& graph);

/// The same for the SwiGLU between the linear layers of experts (fuse_moe.cc); part of fuse().
void fuse_moe(Graph& graph);

}  // namespace moec
