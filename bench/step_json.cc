#include <map>
#include <nlohmann/json.hpp>

#include "bench/call_text.h"
#include "bench/live_session.h"
#include "bench/step_table.h"
#include "tools/plan_stats.h"

namespace moec::bench {
namespace {

struct Calls {
  int count = 0;
  double seconds = 0, flops = 0, bytes = 0;
};

/// The recorded calls of the same kernel and shapes together.
std::map<std::string, Calls> calls_by_row(const MeasuredStep& step) {
  std::map<std::string, Calls> rows;
  for (const runtime::InstructionSpan& span : step.spans) {
    const fb::InstructionT& instruction =
        *step.plan->plan.programs[span.program]->instructions[span.instruction];
    Calls& calls = rows[row_name(*step.plan, instruction)];
    ++calls.count;
    calls.seconds += span.time.end - span.time.begin;
    calls.flops += static_cast<double>(instruction.flops);
    calls.bytes += static_cast<double>(instruction.bytes);
  }
  return rows;
}

nlohmann::json to_json(const std::map<std::string, Calls>& rows, int steps) {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [name, calls] : rows)
    list.push_back({{"name", name},
                    {"calls", calls.count / steps},
                    {"median_us", 1e6 * calls.seconds / calls.count},
                    {"GFLOP/s", calls.flops / calls.seconds / 1e9},
                    {"GB/s", calls.bytes / calls.seconds / 1e9}});
  return list;
}

}  // namespace

std::string step_json(const MeasuredStep& step) {
  const fb::PlanT& plan = step.plan->plan;
  nlohmann::json memory = nlohmann::json::object();
  for (const runtime::MemoryUse& use : step.memory) memory[use.what] = use.bytes;
  return nlohmann::json({{"model", plan.model->name},
                         {"dtype", fb::EnumNameDType(plan.recipe->dtype)},
                         {"batch_size", plan.recipe->batch_size},
                         {"seq_len", plan.recipe->seq_len},
                         {"grad_accum", plan.recipe->grad_accum},
                         {"cost_model", plan.cost_model},
                         {"predicted_seconds", tools::predicted_time(plan).seconds},
                         {"seconds", step.seconds},
                         {"planned_bytes", tools::device_bytes(plan)},
                         {"memory", memory},
                         {"benchmarks", to_json(calls_by_row(step), step.recorded)}})
             .dump(1) +
         "\n";
}

}  // namespace moec::bench
