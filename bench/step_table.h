// Where the time and the memory of a step go.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/routing.h"
#include "bench/step_times.h"
#include "runtime/plan.h"
#include "runtime/status.h"
#include "runtime/tuning/lane.h"

namespace moec::bench {

using tuning::Lane;

/// Optimizer steps on random tokens.
struct MeasuredStep {
  std::shared_ptr<const runtime::LoadedPlan> plan;
  double seconds = 0;  // of a step that is not recorded
  RecordedSteps recorded;
  std::vector<runtime::MemoryUse> memory;  // of the device, after the steps
  std::vector<double> busiest_experts;     // where routing was forced: load over the mean, by layer
};

/// Trains on random tokens, with `routing` forced if given.
Result<MeasuredStep> measure_step(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane,
                                  std::optional<Routing> routing);

/// Tells of a step by kernel: calls, time, share of the step, predicted over measured time, FLOP/s and
/// bytes/s from the plan's costs, and per cent of the ceiling: the least time that the lane's ceilings allow,
/// instruction by instruction, over the time it took. A row of what lies between kernels makes the sum the
/// step, and is negative where recording costs more than that. Then predicted beside actual time and memory.
std::string step_table(const MeasuredStep& step, const Lane& lane);

/// The same for machines: predicted and measured seconds and bytes; the kernels' times by shape, as rows like
/// those of a benchmark.
std::string step_json(const MeasuredStep& step, const Lane& lane);

/// The same step under several routings, side by side: time by kernel, that of the first routing being 1, and
/// the load of the busiest expert. One session takes all steps: where the device replays graphs, it is the
/// same graph.
Result<std::string> routing_table(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane,
                                  std::span<const Routing> routings);

}  // namespace moec::bench
