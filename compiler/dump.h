// Graphs as text, for people.
#pragma once

#include <string>

#include "compiler/graph.h"
#include "plan_generated.h"

namespace moec {

/// One line per node: "%7 block.0.qkv: bf16[8,128,96] = linear(%5 block.0.attn_norm, block.0.qkv.weight@0)".
/// Versions of persistent memory show as "name@2".
std::string dump_graph(const Graph& graph);

/// One line per instruction: label, kernel, and every operand with its arena and the bytes it lies at,
/// "%x: bf16[8,128,64] Activations+65536".
std::string dump_program(const fb::PlanT& plan, const fb::ProgramT& program);

}  // namespace moec
