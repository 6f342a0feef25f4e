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
  double idle_seconds = 0;      // of the device between two replays, the median
  double host_waits = 0;        // calls in a step in which the host waited for the device
  double host_cpu_seconds = 0;  // of a step: processor time of the thread that trains
};

struct StepTrace {
  Timeline replays;       // empty where the device records none
  Timeline instructions;  // of a few steps
  std::optional<ReplayFigures> figures;
};

/// Once everything is warm, looks at the steps of a run in three ways, of which each disturbs a step in
/// another way: undisturbed, for the processor time of the host, as replays, and by instruction.
class StepTracer {
 public:
  explicit StepTracer(Session& session)
      : session_(session), records_replays_(session.device().records_replays()) {}

  /// Steps that a whole trace takes.
  static int64_t steps_needed(const Device& device);

  /// Whether the next before_step() turns to another way; the caller has then first taken in all its steps,
  /// so that what they cost is counted where they belong.
  bool turns() const { return phase_of(step_) != phase_; }
  /// To be called before every step.
  Status before_step();
  /// To be called after the last step.
  Status finish();

  const StepTrace& trace() const { return trace_; }

 private:
  enum Phase { kWarmUp, kUndisturbed, kReplays, kInstructions, kDone };

  Phase phase_of(int64_t step) const;
  Status turn_to(Phase phase);
  void take_figures();

  Session& session_;
  const bool records_replays_;
  StepTrace trace_;
  Phase phase_ = kWarmUp;
  int64_t step_ = 0;        // steps since the tracer began
  double cpu_seconds_ = 0;  // of the thread: when the undisturbed steps began, then what they took
};

}  // namespace moec::runtime
