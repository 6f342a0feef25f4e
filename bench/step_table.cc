#include "bench/step_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "runtime/tuning/live_session.h"
#include "tools/plan_stats.h"
#include "tools/units.h"

namespace moec::bench {
namespace {

using tuning::warm_up;

std::string heading(const runtime::LoadedPlan& plan, const Lane& lane, const std::string& method) {
  return fmt::format("{}\nbest of {}: {}\nkernel times: {}\n", plan.plan.model->name, lane.name(),
                     lane.best(), method);
}

/// Names of kernels, the one that takes longest first.
std::vector<std::string> by_time(const KernelTotals& kernels) {
  std::vector<std::string> names;
  for (const auto& [kernel, total] : kernels) names.push_back(kernel);
  std::ranges::stable_sort(names, std::greater(),
                           [&](const std::string& name) { return kernels.at(name).seconds; });
  return names;
}

/// "0.97 x".
std::string ratio_text(double part, double whole) {
  return whole > 0 ? fmt::format("{:.2f} x", part / whole) : "-";
}

std::string line(const std::string& name, const KernelTotal& total, double step) {
  const auto rate = [&](double work) { return total.seconds > 0 ? work / total.seconds : 0; };
  return fmt::format(
      "{:<32} {:>6} {:>12.1f} {:>7} {:>9} {:>16} {:>13} {:>9}\n", name, total.calls, 1e6 * total.seconds,
      tools::share_text(total.seconds, step), ratio_text(total.predicted_seconds, total.seconds),
      tools::si_text(rate(total.work.flops), "FLOP/s"), tools::si_text(rate(total.work.bytes), "B/s"),
      tools::share_text(total.least_seconds, total.seconds));
}

std::string table(const KernelTotals& kernels, double step) {
  std::string text = fmt::format("{:<32} {:>6} {:>12} {:>7} {:>9} {:>16} {:>13} {:>9}\n", "kernel", "calls",
                                 "us", "share", "predicted", "rate", "traffic", "% of best");
  KernelTotal sum;
  for (const std::string& kernel : by_time(kernels)) {
    text += line(kernel, kernels.at(kernel), step);
    sum += kernels.at(kernel);
  }
  const double between = step - sum.seconds;
  text += fmt::format("{:<32} {:>6} {:>12.1f} {:>7}\n", "between kernels", "", 1e6 * between,
                      tools::share_text(between, step));
  sum.seconds = step;
  return text + line("step", sum, step);
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

/// Load of the busiest expert over the mean: of the layers with the least and the most.
std::string load_text(const std::vector<double>& layers) {
  const auto [least, most] = std::ranges::minmax(layers);
  return fmt::format("{:.2f} - {:.2f}", least, most);
}

/// A step under one routing.
struct RoutedStep {
  double seconds = 0;
  std::string load, host_waits = "-";
  std::string method;
  KernelTotals kernels;
};

Status time_routings(runtime::Session& session, std::span<const Routing> routings,
                     std::vector<RoutedStep>& steps) {
  for (size_t i = 0; i < routings.size(); ++i) {
    MOEC_RETURN_IF_ERROR(force_routing(session, routings[i]));
    MOEC_RETURN_IF_ERROR(warm_up(session));
    MOEC_ASSIGN_OR_RETURN(steps[i].seconds, step_seconds(session));
    MOEC_ASSIGN_OR_RETURN(const std::vector<double> layers, busiest_experts(session));
    steps[i].load = load_text(layers);
  }
  return {};
}

Status record_routings(runtime::Session& session, const Lane& lane, std::span<const Routing> routings,
                       std::vector<RoutedStep>& steps) {
  for (size_t i = 0; i < routings.size(); ++i) {
    MOEC_RETURN_IF_ERROR(force_routing(session, routings[i]));
    MOEC_RETURN_IF_ERROR(warm_up(session));
    MOEC_ASSIGN_OR_RETURN(const RecordedSteps recorded, record_steps(session));
    steps[i].method = recorded.method;
    steps[i].kernels = kernel_totals(recorded, session.plan().plan, lane.ceilings());
    if (!session.device().records_replays()) continue;
    MOEC_ASSIGN_OR_RETURN(const double waits, host_waits_per_step(session));
    steps[i].host_waits = fmt::format("{:.2g}", waits);
  }
  return {};
}

/// Columns of text, those after the first with room for a ratio.
std::string columns(const std::string& name, size_t count, const std::function<std::string(size_t)>& text) {
  std::string line = fmt::format("{:<32} {:>12}", name, text(0));
  for (size_t i = 1; i < count; ++i) line += fmt::format(" {:>13} {:>5}", text(i), "");
  return line + "\n";
}

/// Columns of microseconds, those after the first with what they are times the first.
std::string times_line(const std::string& name, const std::vector<double>& seconds) {
  std::string line = fmt::format("{:<32} {:>12.1f}", name, 1e6 * seconds[0]);
  for (size_t i = 1; i < seconds.size(); ++i)
    line += fmt::format(" {:>13.1f} {:>5.2f}", 1e6 * seconds[i], seconds[i] / seconds[0]);
  return line + "\n";
}

std::string table(std::span<const Routing> routings, const std::vector<RoutedStep>& steps) {
  const size_t count = steps.size();
  std::string text = columns("us of kernel", count,
                             [&](size_t i) { return kRoutingNames[static_cast<size_t>(routings[i])]; });
  std::vector<double> seconds(count), between(count);
  for (size_t i = 0; i < count; ++i) between[i] = steps[i].seconds;
  for (const std::string& kernel : by_time(steps[0].kernels)) {
    for (size_t i = 0; i < count; ++i) {
      seconds[i] = steps[i].kernels.at(kernel).seconds;
      between[i] -= seconds[i];
    }
    text += times_line(kernel, seconds);
  }
  text +=
      columns("between kernels", count, [&](size_t i) { return fmt::format("{:.1f}", 1e6 * between[i]); });
  for (size_t i = 0; i < count; ++i) seconds[i] = steps[i].seconds;
  return text + times_line("step", seconds) +
         columns("busiest expert, of mean load", count, [&](size_t i) { return steps[i].load; }) +
         columns("waits of the host in a step", count, [&](size_t i) { return steps[i].host_waits; });
}

}  // namespace

Result<MeasuredStep> measure_step(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane,
                                  std::optional<Routing> routing) {
  lane.enter();
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, new_session(plan, lane));
  if (routing) MOEC_RETURN_IF_ERROR(force_routing(session, *routing));
  MOEC_RETURN_IF_ERROR(warm_up(session));
  MeasuredStep step;
  step.plan = std::move(plan);
  MOEC_ASSIGN_OR_RETURN(step.seconds, step_seconds(session));
  MOEC_ASSIGN_OR_RETURN(step.memory, session.device().memory_use());
  MOEC_ASSIGN_OR_RETURN(step.recorded, record_steps(session));
  if (routing) {
    MOEC_ASSIGN_OR_RETURN(step.busiest_experts, busiest_experts(session));
  }
  return step;
}

std::string step_table(const MeasuredStep& step, const Lane& lane) {
  const fb::PlanT& plan = step.plan->plan;
  const double predicted = tools::predicted_time(plan).seconds;
  std::string text = heading(*step.plan, lane, step.recorded.method);
  if (!step.busiest_experts.empty())
    text += fmt::format("busiest expert of a layer: {} of the mean load\n", load_text(step.busiest_experts));
  return text + fmt::format("\n{}\n{:.0f} tok/s; predicted for {}: {}, {}\n{}",
                            table(kernel_totals(step.recorded, plan, lane.ceilings()), step.seconds),
                            static_cast<double>(tools::tokens_per_step(*plan.recipe)) / step.seconds,
                            plan.cost_model, tools::short_time_text(predicted),
                            ratio_text(predicted, step.seconds), memory_text(step));
}

Result<std::string> routing_table(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane,
                                  std::span<const Routing> routings) {
  lane.enter();
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, new_session(plan, lane));
  std::vector<RoutedStep> steps(routings.size());
  MOEC_RETURN_IF_ERROR(time_routings(session, routings, steps));
  MOEC_RETURN_IF_ERROR(record_routings(session, lane, routings, steps));
  return fmt::format("{}\n{}", heading(*plan, lane, steps[0].method), table(routings, steps));
}

}  // namespace moec::bench
