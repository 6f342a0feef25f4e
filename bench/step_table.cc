#include "bench/step_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "bench/live_model.h"
#include "bench/live_session.h"
#include "tools/plan_stats.h"
#include "tools/units.h"

namespace moec::bench {
namespace {

/// Steps whose instructions are recorded, and of which the last ones count: the first captures a graph.
constexpr int kRecordedSteps = 4;
constexpr int kCountedSteps = 3;

/// Steps that are timed as a whole: as many as last this long, within bounds.
constexpr double kTimedSeconds = 0.3;
constexpr int kFewestSteps = 5, kMostSteps = 500;

struct Total {
  int calls = 0;
  double seconds = 0;
  double least_seconds = 0;  // by the ceilings
  double predicted = 0;      // seconds
  Work work;
};

/// Of a step, by kernel.
std::map<std::string, Total> totals_by_kernel(const MeasuredStep& step, const Ceilings& ceilings) {
  std::map<std::string, Total> totals;
  for (const runtime::InstructionSpan& span : step.spans) {
    const fb::InstructionT& instruction =
        *step.plan->plan.programs[span.program]->instructions[span.instruction];
    const Work work = {.flops = static_cast<double>(instruction.flops),
                       .bytes = static_cast<double>(instruction.bytes)};
    Total& total = totals[instruction.kernel];
    ++total.calls;
    total.seconds += span.time.end - span.time.begin;
    total.least_seconds += std::max(work.flops / ceilings.flops, work.bytes / ceilings.bytes);
    total.predicted += instruction.seconds;
    total.work.flops += work.flops;
    total.work.bytes += work.bytes;
  }
  for (auto& [kernel, total] : totals) {
    total.calls /= step.recorded;
    for (double* sum :
         {&total.seconds, &total.least_seconds, &total.predicted, &total.work.flops, &total.work.bytes})
      *sum /= step.recorded;
  }
  return totals;
}

/// "0.97 x".
std::string ratio_text(double part, double whole) {
  return whole > 0 ? fmt::format("{:.2f} x", part / whole) : "-";
}

std::string line(const std::string& name, int calls, const Total& total, double step) {
  const auto rate = [&](double work) { return total.seconds > 0 ? work / total.seconds : 0; };
  return fmt::format(
      "{:<32} {:>6} {:>12.1f} {:>7} {:>9} {:>16} {:>13} {:>9}\n", name, calls, 1e6 * total.seconds,
      tools::share_text(total.seconds, step), ratio_text(total.predicted, total.seconds),
      tools::si_text(rate(total.work.flops), "FLOP/s"), tools::si_text(rate(total.work.bytes), "B/s"),
      tools::share_text(total.least_seconds, total.seconds));
}

std::string table(const std::map<std::string, Total>& totals, double step) {
  std::vector<std::pair<std::string, Total>> rows(totals.begin(), totals.end());
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::string text = fmt::format("{:<32} {:>6} {:>12} {:>7} {:>9} {:>16} {:>13} {:>9}\n", "kernel", "calls",
                                 "us", "share", "predicted", "rate", "traffic", "% of best");
  Total sum;
  for (const auto& [kernel, total] : rows) {
    text += line(kernel, total.calls, total, step);
    sum.calls += total.calls;
    sum.seconds += total.seconds;
    sum.least_seconds += total.least_seconds;
    sum.predicted += total.predicted;
    sum.work.flops += total.work.flops;
    sum.work.bytes += total.work.bytes;
  }
  const double between = step - sum.seconds;
  text += fmt::format("{:<32} {:>6} {:>12.1f} {:>7}\n", "between kernels", "", 1e6 * between,
                      tools::share_text(between, step));
  sum.seconds = step;
  return text + line("step", sum.calls, sum, step);
}

/// What the device says that it gave, and what the plan asks for.
std::string memory_text(const MeasuredStep& step) {
  const uint64_t planned = tools::device_bytes(step.plan->plan);
  std::string text = fmt::format("memory planned: {}; taken:", tools::bytes_text(planned));
  for (const runtime::MemoryUse& use : step.memory)
    text += fmt::format(" {} {},", use.what, tools::bytes_text(use.bytes));
  text.back() = '\n';
  return text;
}

}  // namespace

Result<MeasuredStep> measure_step(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane) {
  lane.enter();
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, live_session(plan, lane));
  MeasuredStep step;
  step.plan = std::move(plan);
  MOEC_ASSIGN_OR_RETURN(const double one, seconds_per_step(session, 1));
  const int steps =
      static_cast<int>(std::clamp(kTimedSeconds / one, double{kFewestSteps}, double{kMostSteps}));
  MOEC_ASSIGN_OR_RETURN(step.seconds, seconds_per_step(session, steps));
  runtime::Device& device = session.device();
  MOEC_ASSIGN_OR_RETURN(step.memory, device.memory_use());
  MOEC_RETURN_IF_ERROR(device.start_timeline(runtime::TimelineDetail::kInstructions));
  for (int i = 0; i < kRecordedSteps; ++i) MOEC_RETURN_IF_ERROR(session.train_step());
  MOEC_ASSIGN_OR_RETURN(runtime::Timeline timeline, device.stop_timeline());
  const auto first = static_cast<std::ptrdiff_t>(timeline.instructions.size() / kRecordedSteps *
                                                 (kRecordedSteps - kCountedSteps));
  step.spans.assign(timeline.instructions.begin() + first, timeline.instructions.end());
  step.recorded = kCountedSteps;
  step.method = std::move(timeline.method);
  return step;
}

std::string step_table(const MeasuredStep& step, const Lane& lane) {
  const fb::PlanT& plan = step.plan->plan;
  const double predicted = tools::predicted_time(plan).seconds;
  return fmt::format("{}\nbest of {}: {}\nkernel times: {}\n\n{}\n{:.0f} tok/s; predicted for {}: {}, {}\n{}",
                     plan.model->name, lane.name(), lane.best(), step.method,
                     table(totals_by_kernel(step, lane.ceilings()), step.seconds),
                     static_cast<double>(tools::tokens_per_step(*plan.recipe)) / step.seconds,
                     plan.cost_model, tools::short_time_text(predicted), ratio_text(predicted, step.seconds),
                     memory_text(step));
}

}  // namespace moec::bench
