#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bench/tuning.h"
#include "runtime/file_io.h"
#include "runtime/plan.h"
#include "schema/plan_file.h"
#include "tools/commands.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

using bench::TunedCall;

struct TuneFlags {
  std::string plan;
  std::string output;
  DeviceFlags device;
};

Result<bench::Lane> open_lane(const DeviceFlags& flags) {
  if (picks_cuda(flags)) return bench::Lane::cuda();
  return bench::Lane::cpu(flags.threads);
}

std::string name_of(const bench::VariantTime& time) {
  return time.variant.empty() ? "default" : time.variant;
}

/// "linear | bf16[64,128]->... | x 12": the default's time, the best one's, and all.
std::string row(const TunedCall& call, const fb::RecipeT& recipe) {
  std::vector<std::string> all;
  for (const bench::VariantTime& time : call.times)
    all.push_back(fmt::format("{} {}", name_of(time), short_time_text(time.seconds)));
  const bench::VariantTime& best = call.times[call.best];
  return fmt::format("{:<32} {:>5} {:<12} {:>5.2f} x  {}\n  {}\n", call.kernel, call.calls_per_step(recipe),
                     name_of(best), call.times.front().seconds / best.seconds, call.shapes,
                     fmt::join(all, ", "));
}

double saved_per_step(std::span<const TunedCall> calls, const fb::RecipeT& recipe) {
  double seconds = 0;
  for (const TunedCall& call : calls) seconds += call.calls_per_step(recipe) * call.saved();
  return seconds;
}

Status write_plan(const std::string& path, const fb::PlanT& plan) {
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  return runtime::write_file(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

Status tune(const TuneFlags& flags) {
  const std::string output = flags.output.empty() ? flags.plan : flags.output;
  MOEC_ASSIGN_OR_RETURN(const auto plan, runtime::load_plan(flags.plan));
  MOEC_ASSIGN_OR_RETURN(const bench::Lane lane, open_lane(flags.device));
  MOEC_ASSIGN_OR_RETURN(const auto device, lane.make_device());
  const fb::RecipeT& recipe = *plan->plan.recipe;
  const std::string model(device->model());
  bool first = true;
  MOEC_ASSIGN_OR_RETURN(const std::vector<TunedCall> calls,
                        bench::time_variants(plan, lane, [&](const TunedCall& call) {
                          if (first)
                            fmt::print("{} on {}\n\n{:<32} {:>5} {:<12} {:>7}  {}\n", plan->plan.model->name,
                                       model, "kernel", "calls", "best", "gain", "shapes");
                          first = false;
                          fmt::print("{}", row(call, recipe));
                        }));
  if (calls.empty()) {
    fmt::print("{}: nothing to choose: {} computes every kernel of the plan in one way\n", flags.plan, model);
    return output == flags.plan ? Status() : runtime::write_file(output, plan->bytes);
  }
  const auto chosen = std::ranges::count_if(calls, [](const TunedCall& call) { return call.best != 0; });
  MOEC_RETURN_IF_ERROR(write_plan(output, bench::tuned_plan(plan->plan, calls, model)));
  fmt::print("\n{}: {} of {} kinds of calls are faster than by default, {} of a step\n", output, chosen,
             calls.size(), short_time_text(saved_per_step(calls, recipe)));
  return {};
}

constexpr const char* kExamples = R"(Examples:
  moerun tune tiny.plan                             chooses for the GPU, in place
  moerun tune tiny.plan -o tuned.plan --device cuda

Rows show the kernel, its calls in a step, the best variant, how many times faster it is than the device's
own choice, and all times. A plan is tuned for one model of device; others make their own choices.)";

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
