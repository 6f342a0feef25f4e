#include "runtime/step_tracer.h"

#include <algorithm>
#include <ctime>
#include <utility>
#include <vector>

namespace moec::runtime {
namespace {

/// Code is loaded in the first step, a graph captured in the second.
constexpr int64_t kWarmUpSteps = 3;
constexpr int64_t kUndisturbedSteps = 64;
/// The first of a recording captures anew, and a few more are taken before the device has a queue again.
constexpr int64_t kSettlingSteps = 8;
constexpr int64_t kReplaySteps = kSettlingSteps + 64;
constexpr int64_t kInstructionSteps = 3;

double thread_cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

int64_t StepTracer::steps_needed(const Device& device) {
  return kWarmUpSteps + (device.records_replays() ? kUndisturbedSteps + kReplaySteps : 0) + kInstructionSteps;
}

StepTracer::Phase StepTracer::phase_of(int64_t step) const {
  const std::pair<Phase, int64_t> phases[] = {{kWarmUp, kWarmUpSteps},
                                              {kUndisturbed, records_replays_ ? kUndisturbedSteps : 0},
                                              {kReplays, records_replays_ ? kReplaySteps : 0},
                                              {kInstructions, kInstructionSteps}};
  for (const auto& [phase, steps] : phases) {
    if (step < steps) return phase;
    step -= steps;
  }
  return kDone;
}

Status StepTracer::before_step() {
  MOEC_RETURN_IF_ERROR(turn_to(phase_of(step_)));
  ++step_;
  // Not behind the last step of the phase, where the host waits for all of them.
  if (phase_ == kUndisturbed && turns()) cpu_seconds_ = thread_cpu_seconds() - cpu_seconds_;
  return {};
}

Status StepTracer::finish() { return turn_to(kDone); }

Status StepTracer::turn_to(Phase phase) {
  if (phase == phase_) return {};
  Device& device = session_.device();
  if (phase_ == kReplays) {
    MOEC_ASSIGN_OR_RETURN(trace_.replays, device.stop_timeline());
    take_figures();
  }
  if (phase_ == kInstructions) {
    MOEC_ASSIGN_OR_RETURN(trace_.instructions, device.stop_timeline());
  }
  phase_ = phase;
  if (phase == kUndisturbed) cpu_seconds_ = thread_cpu_seconds();
  if (phase == kReplays) return device.start_timeline(TimelineDetail::kReplays);
  if (phase == kInstructions) return device.start_timeline(TimelineDetail::kInstructions);
  return {};
}

void StepTracer::take_figures() {
  const std::vector<TimeSpan>& replays = trace_.replays.replays;
  std::vector<double> idle;
  for (size_t i = kSettlingSteps; i < replays.size(); ++i)
    idle.push_back(replays[i].begin - replays[i - 1].end);
  if (idle.empty()) return;  // the run has ended
  trace_.figures = {.idle_seconds = median(std::move(idle)),
                    .host_waits = static_cast<double>(trace_.replays.host_waits) / kReplaySteps,
                    .host_cpu_seconds = cpu_seconds_ / (kUndisturbedSteps - 1)};
}

}  // namespace moec::runtime
