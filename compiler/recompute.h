// Trades time for memory: activations that are computed again in the backward pass instead of being kept.
#pragma once

#include <vector>

#include "compiler/cost_model.h"
#include "compiler/graph.h"
#include "planner/recompute.h"

namespace moec {

/// A node of the backward pass whose last output, `again`, is what `value` of the forward pass holds.
struct Remade {
  size_t node;
  ValueId value, again;
};

/// The activations of experts that the program does not keep, as their backward products make them again
/// (compiler/fuse_moe.cc), and the program that keeps them all.
std::vector<Remade> remade_activations(const Graph& program);
Graph keep_activations(const Graph& program);

/// The ways to run a training program, by planner/recompute.h. Any node of the forward pass may run again
/// that writes activations alone and reads nothing that the program overwrites before its last node: it
/// writes the same bits then, dropout included, whose mask depends on counters that do not move within the
/// program. What the program makes again in a product of the backward pass may be kept instead.
class Recompute {
 public:
  /// `program` is a forward pass followed by a backward pass.
  Recompute(Graph program, const CostModel& costs);

  /// The fastest first, each with less memory than the one before; the first one keeps everything.
  const std::vector<planner::Alternative>& alternatives() const { return alternatives_; }

  /// The program run in one of these ways; nodes that run again carry `recompute` and say so in their label.
  Graph apply(const planner::Alternative& alternative) const;

 private:
  Graph program_;  // as it came, which makes activations again
  Graph kept_;
  planner::RecomputeProblem problem_;  // of the program that keeps everything
  std::vector<planner::Alternative> alternatives_;
};

}  // namespace moec
