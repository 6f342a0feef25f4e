// What the planner sees of a program: sizes and steps, no ops.
#pragma once

#include "compiler/graph.h"
#include "planner/planner.h"

namespace moec {

/// Whether the planner places the value: not absent, and gone when the program ends.
bool is_activation(const Graph& graph, ValueId id);

/// The operands of a node as shapes without data.
KernelCall shapes_of(const Graph& graph, const Node& node);

/// One step per node, in order; values have the numbers that they have in the graph. Persistent memory is
/// left out.
planner::Problem memory_problem(const Graph& graph);

/// Bytes of the activation arena that a program needs.
uint64_t activation_bytes(const Graph& graph);

}  // namespace moec
