#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/file_io.h"
#include "runtime/plan.h"
#include "runtime/tuning/tuning.h"
#include "schema/plan_file.h"
#include "tools/commands.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

using tuning::TunedCall;

struct TuneFlags {
  std::string plan;
  std::string output;
  DeviceFlags device;
};

Result<tuning::Lane> open_lane(const DeviceFlags& flags) {
  if (picks_cuda(flags)) return tuning::Lane::cuda();
  return tuning::Lane::cpu(flags.threads);
}

std::string name_of(const tuning::VariantTime& time) {
  return time.variant.empty() ? "default" : time.variant;
}

/// The best variant of a call, and the times of all.
std::string row(const TunedCall& call, const fb::RecipeT& recipe) {
  std::vector<std::string> all;
  for (const tuning::VariantTime& time : call.times)
    all.push_back(fmt::format("{} {}", name_of(time), short_time_text(time.seconds)));
  const tuning::VariantTime& best = call.times[call.best];
  return fmt::format("{:<32} {:>5} {:<12} {:>5.2f} x  {}\n  {}\n", call.kernel, call.calls_per_step(recipe),
                     name_of(best), call.times.front().seconds / best.seconds, call.shapes,
                     fmt::join(all, ", "));
}

/// What a variant makes of the step.
std::string row(const TunedCall& call, double without, double with) {
  return fmt::format("{}: {} {} {}, step {} -> {}, {:+.2f}%\n", call.kept ? "kept" : "left", call.kernel,
                     name_of(call.times[call.best]), call.shapes, short_time_text(without),
                     short_time_text(with), 100 * (with / without - 1));
}

Status tune(const TuneFlags& flags) {
  const std::string output = flags.output.empty() ? flags.plan : flags.output;
  MOEC_ASSIGN_OR_RETURN(const auto plan, runtime::load_plan(flags.plan));
  MOEC_ASSIGN_OR_RETURN(runtime::AtomicFile file, runtime::AtomicFile::create(output));
  MOEC_ASSIGN_OR_RETURN(const tuning::Lane lane, open_lane(flags.device));
  MOEC_ASSIGN_OR_RETURN(const auto device, lane.make_device());
  bool first = true;
  const auto on_call = [&](const TunedCall& call) {
    if (std::exchange(first, false))
      fmt::print("{} on {}\n\n{:<32} {:>5} {:<12} {:>7}  {}\n", plan->plan.model->name, device->model(),
                 "kernel", "calls", "best", "gain", "shapes");
    fmt::print("{}", row(call, *plan->plan.recipe));
    std::fflush(stdout);
  };
  const auto on_trial = [](const TunedCall& call, double without, double with) {
    fmt::print("{}", row(call, without, with));
    std::fflush(stdout);
  };
  MOEC_ASSIGN_OR_RETURN(const tuning::Tuning tuned,
                        tuning::tune(plan, lane, {.on_call = on_call, .on_trial = on_trial}));
  if (tuned.calls.empty()) {
    fmt::print("{}: nothing to choose: {} computes every kernel of the plan in one way\n", flags.plan,
               device->model());
    if (output == flags.plan) return {};
    MOEC_RETURN_IF_ERROR(file.write(std::as_bytes(std::span(plan->bytes))));
    return file.commit();
  }
  const std::vector<uint8_t> bytes = serialize_plan(tuned.plan);
  MOEC_RETURN_IF_ERROR(file.write(std::as_bytes(std::span(bytes))));
  MOEC_RETURN_IF_ERROR(file.commit());
  fmt::print("\n{}: {} of {} kinds of calls are told their variant\n", output,
             std::ranges::count_if(tuned.calls, &TunedCall::kept), tuned.calls.size());
  return {};
}

constexpr const char* kExamples = R"(Examples:
  moerun tune tiny.plan                             chooses for the GPU, in place
  moerun tune tiny.plan -o tuned.plan --device cuda

Rows show a kernel, its calls in a step, the best variant, how many times faster it is than the device's own
choice, and all times; then what each of these makes of the step, which decides. A plan is tuned for one model
of device; others make their own choices.)";

}  // namespace

Command tune_command(CLI::App& app) {
  CLI::App* command = add_command(app, "tune", "Time the variants of a plan's kernels and keep the fastest");
  auto flags = std::make_shared<TuneFlags>();
  command->add_option("PLAN", flags->plan, "Plan of moec")->required();
  command->add_option("-o,--output", flags->output, "Plan to write (default: PLAN itself)")
      ->type_name("PLAN");
  add_device_flags(*command, flags->device);
  command->footer(kExamples);
  return {command, [flags] { return tune(*flags); }};
}

}  // namespace moec::tools
