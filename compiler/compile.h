// The whole way from a model to a plan.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "plan_generated.h"
#include "schema/plan_file.h"  // IWYU pragma: export

namespace moec {

struct CompileOptions {
  /// Tokens that the device keeps at hand; larger data passes through this window in turns.
  int64_t window_tokens = int64_t{1} << 21;
  /// The host writes tokens and targets before each run instead of the plan loading them from the window.
  bool host_batches = false;
  /// Called with the text of every stage of every program: its graph, then its instructions.
  std::function<void(const std::string& stage, const std::string& text)> on_stage;
};

/// Compiles a model as its recipe says. Runs the independent validator on the result. Throws CompileError.
fb::PlanT compile(const fb::ModelT& model, const CompileOptions& options = {});

}  // namespace moec
