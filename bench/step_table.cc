#include "bench/step_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "bench/live_model.h"
#include "bench/live_session.h"
#include "tools/units.h"

namespace moec::bench {
namespace {

/// Steps whose instructions are recorded, and of which the last ones count: the first captures a graph.
constexpr int kRecordedSteps = 4;
constexpr int kCountedSteps = 3;

/// Steps that are timed as a whole.
constexpr int kTimedSteps = 10;

struct Total {
  int calls = 0;
  double seconds = 0;
  double least_seconds = 0;  // by the ceilings
  Work work;
};

/// Of a step, by kernel.
std::map<std::string, Total> totals_by_kernel(const fb::PlanT& plan,
                                              std::span<const runtime::InstructionSpan> spans,
                                              const Ceilings& ceilings) {
  std::map<std::string, Total> totals;
  for (const runtime::InstructionSpan& span : spans) {
    const fb::InstructionT& instruction = *plan.programs[span.program]->instructions[span.instruction];
    const Work work = {.flops = static_cast<double>(instruction.flops),
                       .bytes = static_cast<double>(instruction.bytes)};
    Total& total = totals[instruction.kernel];
    ++total.calls;
    total.seconds += span.time.end - span.time.begin;
    total.least_seconds += std::max(work.flops / ceilings.flops, work.bytes / ceilings.bytes);
    total.work.flops += work.flops;
    total.work.bytes += work.bytes;
  }
  for (auto& [kernel, total] : totals) {
    total.calls /= kCountedSteps;
    total.seconds /= kCountedSteps;
    total.least_seconds /= kCountedSteps;
    total.work.flops /= kCountedSteps;
    total.work.bytes /= kCountedSteps;
  }
  return totals;
}

std::string line(const std::string& name, int calls, const Total& total, double step) {
  const auto rate = [&](double work) { return total.seconds > 0 ? work / total.seconds : 0; };
  return fmt::format("{:<28} {:>6} {:>12.1f} {:>7} {:>16} {:>13} {:>9}\n", name, calls, 1e6 * total.seconds,
                     tools::share_text(total.seconds, step), tools::si_text(rate(total.work.flops), "FLOP/s"),
                     tools::si_text(rate(total.work.bytes), "B/s"),
                     tools::share_text(total.least_seconds, total.seconds));
}

std::string table(const std::map<std::string, Total>& totals, double step) {
  std::vector<std::pair<std::string, Total>> rows(totals.begin(), totals.end());
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::string text = fmt::format("{:<28} {:>6} {:>12} {:>7} {:>16} {:>13} {:>9}\n", "kernel", "calls", "us",
                                 "share", "rate", "traffic", "% of best");
  Total sum;
  for (const auto& [kernel, total] : rows) {
    text += line(kernel, total.calls, total, step);
    sum.calls += total.calls;
    sum.seconds += total.seconds;
    sum.least_seconds += total.least_seconds;
    sum.work.flops += total.work.flops;
    sum.work.bytes += total.work.bytes;
  }
  const double between = step - sum.seconds;
  text += fmt::format("{:<28} {:>6} {:>12.1f} {:>7}\n", "between kernels", "", 1e6 * between,
                      tools::share_text(between, step));
  sum.seconds = step;
  return text + line("step", sum.calls, sum, step);
}

}  // namespace

Result<std::string> step_table(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane) {
  lane.enter();
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, live_session(plan, lane));
  MOEC_ASSIGN_OR_RETURN(const double step, seconds_per_step(session, kTimedSteps));
  runtime::Device& device = session.device();
  MOEC_RETURN_IF_ERROR(device.start_timeline(runtime::TimelineDetail::kInstructions));
  for (int i = 0; i < kRecordedSteps; ++i) MOEC_RETURN_IF_ERROR(session.train_step());
  MOEC_ASSIGN_OR_RETURN(const runtime::Timeline timeline, device.stop_timeline());
  const size_t counted = timeline.instructions.size() / kRecordedSteps * kCountedSteps;
  const auto totals =
      totals_by_kernel(plan->plan, std::span(timeline.instructions).last(counted), lane.ceilings());
  const auto tokens = static_cast<double>(session.batch_size() * session.seq_len() * session.grad_accum());
  return fmt::format("{}\nbest of {}: {}\nkernel times: {}\n\n{}\n{:.0f} tok/s\n", plan->plan.model->name,
                     lane.name(), lane.best(), timeline.method, table(totals, step), tokens / step);
}

}  // namespace moec::bench
