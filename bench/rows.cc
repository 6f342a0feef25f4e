#include "bench/rows.h"

#include <fmt/format.h>

#include <utility>

namespace moec::bench {

void Rows::add(const std::string& name, benchmark::TimeUnit unit,
               std::function<Status(benchmark::State&)> run) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [this, run = std::move(run)](benchmark::State& state) {
                                 const Status status = run(state);
                                 if (status.ok()) return;
                                 ++failed_;
                                 state.SkipWithError(status.error().message.c_str());
                               })
      ->UseManualTime()
      ->Unit(unit);
}

std::string kernel_row(const runtime::LoadedPlan& plan, const fb::InstructionT& instruction) {
  return fmt::format("kernel/{}/{}/{}", instruction.kernel, plan.plan.model->name,
                     runtime::call_shapes(plan.plan, instruction));
}

}  // namespace moec::bench
