// Puts the nodes of a program into an order that needs less memory.
#pragma once

#include "compiler/graph.h"

namespace moec {

/// The same nodes in the order of planner/order.h: in a backward pass a weight's gradient comes before the
/// gradient that goes on, so that what only the weight's gradient reads is freed first. Nodes that write
/// state or data (load_batch, record_loss) stay where they are, and every version of persistent memory is
/// read before the next one is written.
Graph order_for_memory(const Graph& graph);

}  // namespace moec
