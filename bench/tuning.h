// Which variants of its kernels are the fastest for a plan on a device.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/lane.h"
#include "plan_generated.h"
#include "runtime/plan.h"
#include "runtime/status.h"

namespace moec::bench {

struct VariantTime {
  std::string variant;  // empty for what the device chooses by itself
  double seconds = 0;   // of a call, the median of some rounds
};

/// Instructions of one kernel and the same shapes, which can be computed in several ways.
struct TunedCall {
  std::string kernel;
  std::string shapes;                                            // kernels/call_shapes.h
  std::vector<std::pair<fb::ProgramKind, size_t>> instructions;  // program, place in it
  std::vector<VariantTime> times;                                // the device's own choice first
  size_t best = 0;                                               // of times

  /// Times a step runs it.
  double calls_per_step(const fb::RecipeT& recipe) const;
  /// What the best variant saves of each call.
  double saved() const { return times.front().seconds - times[best].seconds; }
};

/// Times every variant that computes a call of the plan on the lane's device, on operands from the middle of
/// training on random tokens. A variant is best only where it beats the device's own choice by more than the
/// times vary. on_call sees each result as it comes. Needs the plan's memory, then that of a call's operands
/// once for each variant.
Result<std::vector<TunedCall>> time_variants(std::shared_ptr<const runtime::LoadedPlan> plan,
                                             const Lane& lane,
                                             const std::function<void(const TunedCall&)>& on_call);

/// The plan with these choices and no others, for a device of this model (runtime/device.h). Where nothing
/// beats the device's own choices the plan is tuned for nothing.
fb::PlanT tuned_plan(const fb::PlanT& plan, std::span<const TunedCall> calls, const std::string& model);

}  // namespace moec::bench
