// Rules for the gradients of normalisations.
#pragma once

#include "compiler/rewriter.h"

namespace moec {

/// rmsnorm_bwd, layernorm_bwd, which no plan calls  ->  of few rows norm_bwd_parameters, norm_bwd_input; of
/// many norm_bwd_partials and a norm_bwd_sum for each parameter. A pass over few rows takes as long as its
/// slowest step; apart, the gradients of parameters need not hold up what depends on that of x.
void split_norm_gradients(Graph& graph);

/// Moves every norm_bwd_sum to the end, where a launch makes as many as it holds, but for those that a node
/// which stays needs.
void sum_norm_gradients_last(Graph& graph);

/// dx = norm_bwd_input(...); z = dropout(dx)  ->  dx, z = norm_bwd_input(...), without dx where only the
/// dropout reads it.
bool norm_gradient_then_dropout(Rewriter& graph, int at);

}  // namespace moec
