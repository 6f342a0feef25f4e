#include "bench/step_times.h"

#include <algorithm>
#include <span>

#include "bench/live_session.h"

namespace moec::bench {
namespace {

/// Steps that are recorded, and of which the last ones count: the first captures a graph.
constexpr int kRecordedSteps = 4;
constexpr int kCountedSteps = 3;

/// Steps that are timed as a whole.
constexpr int kTimedSteps = 10;

/// Records what happens in `kRecordedSteps` steps.
Result<runtime::Timeline> record(runtime::Session& session, runtime::TimelineDetail detail) {
  runtime::Device& device = session.device();
  MOEC_RETURN_IF_ERROR(device.start_timeline(detail));
  for (int i = 0; i < kRecordedSteps; ++i) MOEC_RETURN_IF_ERROR(session.train_step());
  return device.stop_timeline();
}

}  // namespace

KernelTotal& KernelTotal::operator+=(const KernelTotal& other) {
  calls += other.calls;
  seconds += other.seconds;
  least_seconds += other.least_seconds;
  work.flops += other.work.flops;
  work.bytes += other.work.bytes;
  return *this;
}

Result<double> step_seconds(runtime::Session& session) { return seconds_per_step(session, kTimedSteps); }

Result<StepTimes> record_step(runtime::Session& session, const Lane& lane) {
  MOEC_ASSIGN_OR_RETURN(const runtime::Timeline timeline,
                        record(session, runtime::TimelineDetail::kInstructions));
  const Ceilings& ceilings = lane.ceilings();
  StepTimes times{.method = timeline.method, .kernels = {}};
  const size_t counted = timeline.instructions.size() / kRecordedSteps * kCountedSteps;
  for (const runtime::InstructionSpan& span : std::span(timeline.instructions).last(counted)) {
    const fb::InstructionT& instruction =
        *session.plan().plan.programs[span.program]->instructions[span.instruction];
    const Work work = {.flops = static_cast<double>(instruction.flops),
                       .bytes = static_cast<double>(instruction.bytes)};
    times.kernels[instruction.kernel] +=
        {.calls = 1,
         .seconds = span.time.end - span.time.begin,
         .least_seconds = std::max(work.flops / ceilings.flops, work.bytes / ceilings.bytes),
         .work = work};
  }
  for (auto& [kernel, total] : times.kernels) {
    total.calls /= kCountedSteps;
    total.seconds /= kCountedSteps;
    total.least_seconds /= kCountedSteps;
    total.work.flops /= kCountedSteps;
    total.work.bytes /= kCountedSteps;
  }
  return times;
}

Result<double> host_waits_per_step(runtime::Session& session) {
  MOEC_ASSIGN_OR_RETURN(const runtime::Timeline timeline, record(session, runtime::TimelineDetail::kReplays));
  return static_cast<double>(timeline.host_waits) / kRecordedSteps;
}

}  // namespace moec::bench
