#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "bench/rows.h"
#include "bench/step_table.h"
#include "tools/plan_stats.h"

namespace moec::bench {
namespace {

struct Calls {
  std::vector<double> seconds;
  double flops = 0, bytes = 0;

  double median() {
    const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
    std::ranges::nth_element(seconds, middle);
    return *middle;
  }
  double mean(double sum) const { return sum / static_cast<double>(seconds.size()); }
};

/// The recorded calls of the same kernel and shapes together.
std::map<std::string, Calls> calls_by_row(const MeasuredStep& step) {
  std::map<std::string, Calls> rows;
  for (const runtime::InstructionSpan& span : step.recorded.spans) {
    const fb::InstructionT& instruction =
        *step.plan->plan.programs[span.program]->instructions[span.instruction];
    Calls& calls = rows[kernel_row(*step.plan, instruction)];
    calls.seconds.push_back(span.time.end - span.time.begin);
    calls.flops += static_cast<double>(instruction.flops);
    calls.bytes += static_cast<double>(instruction.bytes);
  }
  return rows;
}

nlohmann::json to_json(std::map<std::string, Calls> rows, int steps) {
  nlohmann::json list = nlohmann::json::array();
  for (auto& [name, calls] : rows) {
    const double median = calls.median();
    list.push_back({{"name", name},
                    {"calls", calls.seconds.size() / static_cast<size_t>(steps)},
                    {"median_us", 1e6 * median},
                    {"GFLOP/s", calls.mean(calls.flops) / median / 1e9},
                    {"GB/s", calls.mean(calls.bytes) / median / 1e9}});
  }
  return list;
}

}  // namespace

std::string step_json(const MeasuredStep& step, const Lane& lane) {
  const fb::PlanT& plan = step.plan->plan;
  nlohmann::json memory = nlohmann::json::object();
  for (const runtime::MemoryUse& use : step.memory) memory[use.what] = use.bytes;
  nlohmann::json arenas = nlohmann::json::object();
  for (const auto& arena : plan.arenas) arenas[fb::EnumNameArenaKind(arena->kind)] = arena->size;
  return nlohmann::json({{"model", plan.model->name},
                         {"device", lane.name()},
                         {"dtype", fb::EnumNameDType(plan.recipe->dtype)},
                         {"batch_size", plan.recipe->batch_size},
                         {"seq_len", plan.recipe->seq_len},
                         {"grad_accum", plan.recipe->grad_accum},
                         {"cost_model", plan.cost_model},
                         {"predicted_seconds", tools::predicted_time(plan).seconds},
                         {"seconds", step.seconds},
                         {"arenas", arenas},
                         {"memory", memory},
                         {"copied_bytes_per_second", lane.ceilings().bytes},
                         {"benchmarks", to_json(calls_by_row(step), step.recorded.steps)}})
             .dump(1) +
         "\n";
}

}  // namespace moec::bench
