#include "runtime/step_tracer.h"

#include <algorithm>
#include <ctime>
#include <utility>
#include <vector>

namespace moec::runtime {
namespace {

/// Steps in their order: to warm up (code is loaded, then graphs are captured), then of the recording of
/// replays those that capture anew and fill the queue, those that count, and those of instructions, of which
/// the first one captures.
constexpr int64_t kWarmUpSteps = 3;
constexpr int64_t kSettlingSteps = 8;
constexpr int64_t kReplaySteps = 64;
constexpr int64_t kInstructionSteps = 3;

double thread_cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int64_t replay_steps(const Device& device) {
  return device.records_replays() ? kSettlingSteps + kReplaySteps : 0;
}

}  // namespace

int64_t StepTracer::steps_needed(const Device& device) {
  return kWarmUpSteps + replay_steps(device) + kInstructionSteps;
}

Status StepTracer::before_step() {
  const int64_t step = step_++;
  const int64_t replays = replay_steps(session_.device());
  if (step == kWarmUpSteps && replays > 0) return start(TimelineDetail::kReplays);
  if (step == kWarmUpSteps + kSettlingSteps && replays > 0) {
    first_counted_ = step;
    cpu_seconds_then_ = thread_cpu_seconds();
  }
  if (step == kWarmUpSteps + replays) {
    MOEC_RETURN_IF_ERROR(stop());
    return start(TimelineDetail::kInstructions);
  }
  return step == kWarmUpSteps + replays + kInstructionSteps ? stop() : Status();
}

Status StepTracer::finish() {
  ++step_;
  return stop();
}

Status StepTracer::start(TimelineDetail detail) {
  MOEC_RETURN_IF_ERROR(session_.device().start_timeline(detail));
  recording_ = detail;
  return {};
}

Status StepTracer::stop() {
  if (!recording_) return {};
  if (*std::exchange(recording_, std::nullopt) == TimelineDetail::kReplays) return stop_replays();
  MOEC_ASSIGN_OR_RETURN(trace_.instructions, session_.device().stop_timeline());
  return {};
}

Status StepTracer::stop_replays() {
  const int64_t steps = step_ - 1 - first_counted_;
  const double cpu_seconds = thread_cpu_seconds() - cpu_seconds_then_;
  MOEC_ASSIGN_OR_RETURN(trace_.replays, session_.device().stop_timeline());
  if (first_counted_ == 0 || steps <= 0) return {};
  std::vector<double> idle;
  const std::vector<TimeSpan>& replays = trace_.replays.replays;
  for (size_t i = kSettlingSteps; i < replays.size(); ++i)
    idle.push_back(replays[i].begin - replays[i - 1].end);
  const auto count = static_cast<double>(steps);
  trace_.figures = {.steps = steps,
                    .idle_seconds = median(std::move(idle)),
                    .host_waits = static_cast<double>(trace_.replays.host_waits) / count,
                    .host_cpu_seconds = cpu_seconds / count};
  return {};
}

}  // namespace moec::runtime
