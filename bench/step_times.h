// Times of a training step and of the kernels in it.
#pragma once

#include <map>
#include <string>

#include "bench/lane.h"
#include "runtime/session.h"
#include "runtime/status.h"

namespace moec::bench {

/// Of all calls of a kernel in a step.
struct KernelTotal {
  int calls = 0;
  double seconds = 0;
  double least_seconds = 0;  // that the lane's ceilings allow, instruction by instruction
  Work work;

  KernelTotal& operator+=(const KernelTotal& other);
};

struct StepTimes {
  std::string method;                          // where the times of kernels come from
  std::map<std::string, KernelTotal> kernels;  // by name
};

/// Seconds of a step without a recording, of several that are submitted together.
Result<double> step_seconds(runtime::Session& session);

/// Records steps of a session that has warmed up, instruction by instruction. step_seconds after a recording
/// may be longer than before it.
Result<StepTimes> record_step(runtime::Session& session, const Lane& lane);

/// Calls in a step in which the host waited for the device; the device must record replays.
Result<double> host_waits_per_step(runtime::Session& session);

}  // namespace moec::bench
