// Gradients whose squares are summed where they are written.
#pragma once

#include <string>
#include <vector>

#include "compiler/builder.h"

namespace moec {

/// Name of the memory for the sums of squares of a parameter's gradient.
std::string squares_name(const std::string& parameter);

/// Makes kernels that write the final gradient of a parameter of at least `least_elements`, and can do so,
/// sum its squares, too, and marks the parameter. For a micro-batch program.
void sum_gradient_squares(Graph& graph, std::vector<Parameter>& parameters, int64_t least_elements);

}  // namespace moec
