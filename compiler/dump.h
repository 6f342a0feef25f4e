// Graphs as text, for people.
#pragma once

#include <string>

#include "compiler/graph.h"

namespace moec {

/// One line per node: "%7 block.0.qkv: bf16[8,128,96] = linear(%5 block.0.attn_norm, block.0.qkv.weight@0)".
/// Versions of persistent memory show as "name@2".
std::string dump_graph(const Graph& graph);

}  // namespace moec
