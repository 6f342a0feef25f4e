// Where the time and the memory of a step go.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/lane.h"
#include "runtime/plan.h"
#include "runtime/status.h"
#include "runtime/timeline.h"

namespace moec::bench {

/// Optimizer steps on random tokens.
struct MeasuredStep {
  std::shared_ptr<const runtime::LoadedPlan> plan;
  double seconds = 0;  // of a step that is not recorded
  /// Of recorded steps, of which there are `recorded`.
  std::vector<runtime::InstructionSpan> spans;
  int recorded = 0;
  std::string method;                      // where the spans come from
  std::vector<runtime::MemoryUse> memory;  // of the device, after the steps
};

Result<MeasuredStep> measure_step(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane);

/// Tells of a step by kernel: calls, time, share of the step, predicted over measured time, FLOP/s and
/// bytes/s from the plan's costs, and per cent of the ceiling: the least time that the lane's ceilings allow,
/// instruction by instruction, over the time it took. A row of what lies between kernels makes the sum the
/// step, and is negative where recording costs more than that. Then predicted beside actual time and memory.
std::string step_table(const MeasuredStep& step, const Lane& lane);

/// The same for machines: predicted and measured seconds and bytes; the kernels' times by shape, as rows like
/// those of a benchmark.
std::string step_json(const MeasuredStep& step, const Lane& lane);

}  // namespace moec::bench
