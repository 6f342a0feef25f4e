// Rules of the fuse pass about RoPE.
#pragma once

#include "compiler/rewriter.h"

namespace moec {

/// qkv = linear(x); y = rope(qkv)  ->  y = linear_rope(x).
bool linear_then_rope(Rewriter& graph, int at);

/// dy = attention_bwd(...); dqkv = rope_bwd(dy)  ->  dqkv = attention_bwd_rope(...).
bool attention_gradient_then_rope(Rewriter& graph, int at);

}  // namespace moec
