// The ways to train a model within a memory budget.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "compiler/compile.h"
#include "compiler/cost_model.h"
#include "compiler/programs.h"
#include "compiler/recompute.h"

namespace moec {

/// A way to run the program that accumulates gradients, and what it takes.
struct Way {
  Graph accumulate;
  FrontierPoint point;
};

/// The ways to train a model, from the one that keeps everything to the one that takes least memory.
class Ways {
 public:
  /// `programs` and `costs` outlive the object.
  Ways(const Programs& programs, const fb::RecipeT& recipe, const CostModel& costs);

  Way keep_everything() const { return make(kept_, 0); }

  /// The program as it is, which repeats nothing and makes activations of experts again.
  Way without_budget() const;

  /// Calls `visit` with every way that may take at most `budget` bytes, the fastest first, until it returns
  /// true.
  void visit(uint64_t budget, const std::function<bool(Way)>& visit) const;

  /// The fastest way that takes at most `budget` bytes.
  std::optional<Way> fastest_within(uint64_t budget) const;

  /// What a budget lacks that no way fits into.
  Shortage shortage(uint64_t budget) const;

 private:
  /// The way that takes least memory, and the fastest of several.
  Way least() const;

  const Recompute& recompute() const;
  Way make(Graph accumulate, double extra_seconds) const;

  const Programs& programs_;
  const CostModel& costs_;
  Graph kept_;  // accumulate with everything kept
  double micro_batches_;
  uint64_t persistent_, others_;  // bytes: of what outlives programs, of activations besides accumulate
  double kept_seconds_;           // of a step that keeps everything
  mutable std::optional<Recompute> recompute_;  // searched for when it is first asked for
};

}  // namespace moec
