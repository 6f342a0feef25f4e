// Heads that belong together.
#pragma once

#include "compiler/graph.h"

namespace moec {

/// Throws CompileError where a Rope's output feeds an Attention, or another Rope, that divides the packed qkv
/// into other heads: both fit its width, but what one rotates would not be what the other takes.
void check_heads(const Graph& graph);

}  // namespace moec
