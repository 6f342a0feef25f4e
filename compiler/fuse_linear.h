// Rules of the fuse pass about linear layers.
#pragma once

#include "compiler/rewriter.h"

namespace moec {

/// z = linear(x); y = activation(z)  ->  y, z = fused_linear(x); without z where nothing else reads it.
bool linear_then_activation(Rewriter& graph, int at);
/// y = dropout(linear(x))  ->  fused_linear(x).
bool linear_then_dropout(Rewriter& graph, int at);

/// dz = activation_bwd(linear_bwd_input(dy), z)  ->  fused_linear_bwd_input(dy, z).
bool linear_gradient_then_activation(Rewriter& graph, int at);
/// The gradients of a layer's weight and bias  ->  linear_bwd_parameters.
bool linear_parameter_gradients(Rewriter& graph, int at);

}  // namespace moec
