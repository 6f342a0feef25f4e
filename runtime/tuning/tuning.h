// Which variants of its kernels make a plan's training step the fastest on a device.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "plan_generated.h"
#include "runtime/plan.h"
#include "runtime/status.h"
#include "runtime/tuning/lane.h"

namespace moec::tuning {

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
  bool kept = false;                                             // the plan chooses the best

  /// Times a step runs it.
  double calls_per_step(const fb::RecipeT& recipe) const;
};

/// Sees the results as they come.
struct TuningObserver {
  /// The variants of a call are timed.
  std::function<void(const TunedCall& call)> on_call;
  /// Seconds of a step, without and with the best variant of a call, which was then kept or not.
  std::function<void(const TunedCall& call, double without, double with)> on_trial;
};

struct Tuning {
  std::vector<TunedCall> calls;  // that can be computed in several ways
  fb::PlanT plan;                // with what was kept
};

/// Times every variant that computes a call of the training step on the lane's device, on operands from the
/// middle of training on random tokens; then, the largest expected gain first, the step with and without the
/// best variant of each call that beats the device's own choice by more than the times vary. It is kept where
/// the step becomes faster, too: what a kernel takes alone says little of kernels that overlap. Needs the
/// memory of the plan, then of a call's operands once for each variant.
Result<Tuning> tune(const std::shared_ptr<const runtime::LoadedPlan>& plan, const Lane& lane,
                    const TuningObserver& observer);

/// The plan with the choices that are kept and no others, for a device of this model (runtime/device.h); for
/// none where nothing is kept.
fb::PlanT tuned_plan(const fb::PlanT& plan, std::span<const TunedCall> calls, std::string_view model);

}  // namespace moec::tuning
