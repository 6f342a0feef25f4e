// Training on random tokens, to time whole steps.
#pragma once

#include <memory>

#include "runtime/session.h"
#include "runtime/status.h"
#include "runtime/tuning/lane.h"

namespace moec::tuning {

/// A session before its first step.
Result<runtime::Session> new_session(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane);

/// Takes steps until memory has been touched, threads are up, and code and graphs are loaded.
Status warm_up(runtime::Session& session);

/// Seconds of a step, of `steps` that are submitted together.
Result<double> seconds_per_step(runtime::Session& session, int steps);

/// Of one optimizer step, as the plan counts it.
Work work_of_step(const runtime::LoadedPlan& plan);

}  // namespace moec::tuning
