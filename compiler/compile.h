// The whole way from a model to a plan.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "compiler/error.h"
#include "plan_generated.h"
#include "schema/plan_file.h"  // IWYU pragma: export

namespace moec {

struct CompileOptions {
  /// Tokens that the device keeps at hand; larger data passes through this window in turns.
  int64_t window_tokens = int64_t{1} << 21;
  /// The host writes tokens and targets before each run instead of the plan loading them from the window.
  bool host_batches = false;
  /// The device that times are predicted for (compiler/costs.def), and times that are known there by
  /// "kernel/shapes" of the call (kernels/call_shapes.h).
  std::string cost_model = "h200";
  std::map<std::string, double> measured_seconds;
  /// Gradients of at least so many elements have their squares summed by the kernel that writes them, where
  /// it can: smaller ones are cheap to read again, as caches hold them.
  int64_t least_summed_elements = int64_t{1} << 24;
  /// Called with the text of every stage of every program: its graph, then its instructions.
  std::function<void(const std::string& stage, const std::string& text)> on_stage;
};

/// A buffer that is live where most bytes are, and the node that made it.
struct LiveBuffer {
  std::string node;
  std::string kernel;
  uint64_t bytes = 0;
};

/// What is missing for a memory budget, with everything computed again that saves memory.
struct Shortage {
  uint64_t budget = 0;
  uint64_t least = 0;               // what all arenas take at least
  uint64_t persistent = 0;          // of that: weights, gradients, optimizer state, tokens
  uint64_t window = 0;              // of that: the window of training tokens
  std::vector<LiveBuffer> at_peak;  // the largest first
};

/// The model does not fit the recipe's memory budget.
class MemoryError : public CompileError {
 public:
  MemoryError(const std::string& message, Shortage missing)
      : CompileError(message), shortage(std::move(missing)) {}

  Shortage shortage;
};

/// Compiles a model as its recipe says: in the least predicted time that its memory budget allows. Without
/// one no instruction runs again, and activations that a backward product can make again beside its results
/// are not kept: what that takes is little beside the memory. A plan may take more memory than it needs, so
/// that gradients can run beside other work: what is left of the budget, 32 MiB without one. Runs the
/// independent validator on the result.
/// Throws CompileError, and MemoryError where the budget is too small.
fb::PlanT compile(const fb::ModelT& model, const CompileOptions& options = {});

/// One way to train a model: the memory of all arenas and the predicted time of an optimizer step.
struct FrontierPoint {
  uint64_t bytes = 0;
  double seconds = 0;
  double recompute_seconds = 0;  // of them for what is computed again
  int recomputed = 0;            // instructions that run again in a micro-batch
  int remade = 0;                // activations that backward products make again beside their results
};

/// The ways to train a model that are worth it, whatever the recipe's budget: each next one takes less memory
/// and more time. Throws CompileError.
std::vector<FrontierPoint> frontier(const fb::ModelT& model, const CompileOptions& options = {});

/// The first of them that takes at most `budget` bytes, the one that `compile` chooses; without `recompute`
/// the one that it chooses without a budget, which runs nothing again. Nothing where none fits.
std::optional<FrontierPoint> fastest_within(uint64_t budget, bool recompute, const fb::ModelT& model,
                                            const CompileOptions& options = {});

}  // namespace moec
