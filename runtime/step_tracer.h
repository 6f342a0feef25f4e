// A look at some steps of a training run while it goes on.
#pragma once

#include <cstdint>
#include <optional>

#include "runtime/session.h"
#include "runtime/status.h"
#include "runtime/timeline.h"

namespace moec::runtime {

/// What the host costs the device, from steps that the device submits as a whole.
struct ReplayFigures {
  int64_t steps = 0;
  double idle_seconds = 0;      // of the device between two replays, the median
  double host_waits = 0;        // calls in a step in which the host waited for the device
  double host_cpu_seconds = 0;  // of a step: processor time of the thread that trains
};

struct StepTrace {
  Timeline replays;       // empty where the device records none
  Timeline instructions;  // of a few steps
  std::optional<ReplayFigures> figures;
};

/// Records, once everything is warm, some dozens of steps as replays, and then a few by instruction. The two
/// recordings disturb a step differently: the first hardly, the second by something at every instruction.
class StepTracer {
 public:
  explicit StepTracer(Session& session) : session_(session) {}

  /// Steps that a whole trace takes.
  static int64_t steps_needed(const Device& device);

  /// To be called before every step.
  Status before_step();
  /// Ends a recording that is under way.
  Status finish();

  const StepTrace& trace() const { return trace_; }

 private:
  Status start(TimelineDetail detail);
  Status stop();
  Status stop_replays();

  Session& session_;
  StepTrace trace_;
  int64_t step_ = 0;  // steps since the tracer began
  std::optional<TimelineDetail> recording_;
  int64_t first_counted_ = 0;    // step
  double cpu_seconds_then_ = 0;  // of the thread, then
};

}  // namespace moec::runtime
