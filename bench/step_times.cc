#include "bench/step_times.h"

#include <algorithm>
#include <span>
#include <utility>

#include "runtime/tuning/live_session.h"

namespace moec::bench {
namespace {

using tuning::seconds_per_step;

/// Steps that are recorded, and of which the last ones count: the first captures a graph.
constexpr int kRecordedSteps = 4;
constexpr int kCountedSteps = 3;

/// Steps that are timed as a whole: as many as last this long, within bounds.
constexpr double kTimedSeconds = 0.3;
constexpr int kFewestSteps = 5, kMostSteps = 500;

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
  predicted_seconds += other.predicted_seconds;
  work.flops += other.work.flops;
  work.bytes += other.work.bytes;
  return *this;
}

Result<double> step_seconds(runtime::Session& session) {
  MOEC_ASSIGN_OR_RETURN(const double one, seconds_per_step(session, 1));
  const double steps = std::clamp(kTimedSeconds / one, double{kFewestSteps}, double{kMostSteps});
  return seconds_per_step(session, static_cast<int>(steps));
}

Result<RecordedSteps> record_steps(runtime::Session& session) {
  MOEC_ASSIGN_OR_RETURN(runtime::Timeline timeline, record(session, runtime::TimelineDetail::kInstructions));
  const size_t counted = timeline.instructions.size() / kRecordedSteps * kCountedSteps;
  const auto spans = std::span(timeline.instructions).last(counted);
  return RecordedSteps{
      .steps = kCountedSteps, .spans = {spans.begin(), spans.end()}, .method = std::move(timeline.method)};
}

KernelTotals kernel_totals(const RecordedSteps& recorded, const fb::PlanT& plan, const Ceilings& ceilings) {
  KernelTotals totals;
  for (const runtime::InstructionSpan& span : recorded.spans) {
    const fb::InstructionT& instruction = *plan.programs[span.program]->instructions[span.instruction];
    const Work work = {.flops = static_cast<double>(instruction.flops),
                       .bytes = static_cast<double>(instruction.bytes)};
    totals[instruction.kernel] +=
        {.calls = 1,
         .seconds = span.time.end - span.time.begin,
         .least_seconds = std::max(work.flops / ceilings.flops, work.bytes / ceilings.bytes),
         .predicted_seconds = instruction.seconds,
         .work = work};
  }
  for (auto& [kernel, total] : totals) {
    total.calls /= recorded.steps;
    for (double* sum : {&total.seconds, &total.least_seconds, &total.predicted_seconds, &total.work.flops,
                        &total.work.bytes})
      *sum /= recorded.steps;
  }
  return totals;
}

Result<double> host_waits_per_step(runtime::Session& session) {
  MOEC_ASSIGN_OR_RETURN(const runtime::Timeline timeline, record(session, runtime::TimelineDetail::kReplays));
  return static_cast<double>(timeline.host_waits) / kRecordedSteps;
}

}  // namespace moec::bench
