// Where the time of a step goes.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "bench/lane.h"
#include "bench/routing.h"
#include "runtime/plan.h"
#include "runtime/status.h"

namespace moec::bench {

/// Trains on random tokens and tells of an optimizer step, by kernel: calls, time, share of the step, FLOP/s
/// and bytes/s from the plan's costs, and per cent of the ceiling: the least time that the lane's ceilings
/// allow, instruction by instruction, over the time it took. The step is timed without a recording; a row
/// of what lies between kernels makes the sum the step, and is negative where recording costs more than that.
/// With `routing`, a line tells the load of the busiest expert.
Result<std::string> step_table(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane,
                               std::optional<Routing> routing);

/// The same step under several routings, side by side: time by kernel, that of the first routing being 1, and
/// the load of the busiest expert. One session takes all steps: where the device replays graphs, it is the
/// same graph.
Result<std::string> routing_table(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane,
                                  std::span<const Routing> routings);

}  // namespace moec::bench
