// Times of a training step and of the kernels in it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime/session.h"
#include "runtime/status.h"
#include "runtime/timeline.h"
#include "runtime/tuning/lane.h"

namespace moec::bench {

using runtime::Ceilings;
using tuning::Work;

/// Instructions of steps that were recorded.
struct RecordedSteps {
  int steps = 0;
  std::vector<runtime::InstructionSpan> spans;
  std::string method;  // where the spans come from
};

/// Of all calls of a kernel in a step.
struct KernelTotal {
  int calls = 0;
  double seconds = 0;
  double least_seconds = 0;      // that the lane's ceilings allow, instruction by instruction
  double predicted_seconds = 0;  // by the plan
  Work work;

  KernelTotal& operator+=(const KernelTotal& other);
};
using KernelTotals = std::map<std::string, KernelTotal>;  // by the kernel's name

/// Seconds of a step without a recording, of several that are submitted together.
Result<double> step_seconds(runtime::Session& session);

/// Records steps of a session that has warmed up, instruction by instruction. step_seconds after a recording
/// may be longer than before it.
Result<RecordedSteps> record_steps(runtime::Session& session);

/// The totals of one of the recorded steps of a plan.
KernelTotals kernel_totals(const RecordedSteps& recorded, const fb::PlanT& plan, const Ceilings& ceilings);

/// Calls in a step in which the host waited for the device; the device must record replays.
Result<double> host_waits_per_step(runtime::Session& session);

}  // namespace moec::bench
