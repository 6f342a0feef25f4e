#include "runtime/tuning/tuning.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>

#include "kernels/catalog.h"
#include "runtime/tuning/live_model.h"
#include "runtime/tuning/live_session.h"
#include "runtime/tuning/single_kernel.h"
#include "schema/plan_file.h"

namespace moec::tuning {
namespace {

using fb::ProgramKind;

/// Variants take turns, so that a change of clocks meets all of them.
constexpr int kWarmUpRounds = 2;
constexpr int kRounds = 9;
/// Differences below this share are noise.
constexpr double kNoise = 0.02;

/// The step is the fastest of some runs of as many steps as last this long, and must gain this share.
constexpr int kTurns = 2;
constexpr int kStepRuns = 5;
constexpr double kRunSeconds = 0.05;
constexpr int kMostSteps = 100;
constexpr double kLeastGain = 0.002;

/// The programs of a step.
constexpr ProgramKind kMeasured[] = {ProgramKind::Accumulate, ProgramKind::Apply};

/// Calls of the step whose kernels have variants; its instructions come first.
std::vector<TunedCall> calls_of(const runtime::LoadedPlan& plan) {
  std::vector<TunedCall> calls;
  std::map<std::pair<std::string, std::string>, size_t> places;
  const auto visit = [&](const fb::ProgramT& program, bool measured) {
    for (size_t i = 0; i < program.instructions.size(); ++i) {
      const fb::InstructionT& instruction = *program.instructions[i];
      if (find_kernel(instruction.kernel)->variants.empty()) continue;
      const std::pair key(instruction.kernel, runtime::call_shapes(plan.plan, instruction));
      const auto place = measured ? places.try_emplace(key, calls.size()).first : places.find(key);
      if (place == places.end()) continue;
      if (place->second == calls.size())
        calls.push_back({.kernel = key.first, .shapes = key.second, .instructions = {}, .times = {}});
      calls[place->second].instructions.emplace_back(program.kind, i);
    }
  };
  for (const ProgramKind kind : kMeasured)
    if (const fb::ProgramT* program = plan.program(kind)) visit(*program, true);
  for (const auto& program : plan.plan.programs)
    if (std::ranges::find(kMeasured, program->kind) == std::end(kMeasured)) visit(*program, false);
  return calls;
}

/// The variants that compute all instructions of a call: results that are computed again must be the same
/// bits.
Result<std::vector<std::string>> common_variants(const LiveModel& model, const TunedCall& call) {
  std::vector<std::string> common = find_kernel(call.kernel)->variants;
  for (const auto& [program, index] : call.instructions) {
    MOEC_ASSIGN_OR_RETURN(const auto variants, model.device().variants(program, index));
    std::erase_if(
        common, [&](const std::string& name) { return std::ranges::find(variants, name) == variants.end(); });
  }
  return common;
}

/// The calls that can be computed in several ways; their times name the variants.
Result<std::vector<TunedCall>> open_calls(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane) {
  std::vector<TunedCall> calls = calls_of(*plan), open;
  MOEC_ASSIGN_OR_RETURN(const LiveModel model, LiveModel::create(std::move(plan), lane));
  for (TunedCall& call : calls) {
    MOEC_ASSIGN_OR_RETURN(const std::vector<std::string> variants, common_variants(model, call));
    if (variants.size() < 2) continue;
    call.times.push_back({});
    for (const std::string& variant : variants) call.times.push_back({.variant = variant});
    open.push_back(std::move(call));
  }
  return open;
}

/// The plan with one instruction that demands a variant.
Result<SingleKernel> make_kernel(const runtime::LoadedPlan& plan, const TunedCall& call,
                                 const std::string& variant, std::span<const Contents> inputs,
                                 const Lane& lane, const std::string& model) {
  const auto [program, index] = call.instructions.front();
  const fb::InstructionT& instruction = *plan.program(program)->instructions[index];
  const Work work = {.flops = static_cast<double>(instruction.flops),
                     .bytes = static_cast<double>(instruction.bytes)};
  MOEC_ASSIGN_OR_RETURN(SingleKernel kernel,
                        SingleKernel::create(plan.plan, instruction, work, lane, {variant, model}));
  for (const Contents& input : inputs) MOEC_RETURN_IF_ERROR(kernel.write(input.tensor, input.bytes));
  return kernel;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Status time_call(const std::shared_ptr<const runtime::LoadedPlan>& plan, const Lane& lane, TunedCall& call) {
  std::vector<Contents> inputs;
  std::string model_name;
  {
    MOEC_ASSIGN_OR_RETURN(LiveModel model, LiveModel::create(plan, lane));
    const auto [program, index] = call.instructions.front();
    MOEC_ASSIGN_OR_RETURN(inputs, model.capture(program, index));
    model_name = model.device().model();
  }
  std::vector<SingleKernel> kernels;
  for (const VariantTime& time : call.times) {
    MOEC_ASSIGN_OR_RETURN(SingleKernel kernel,
                          make_kernel(*plan, call, time.variant, inputs, lane, model_name));
    kernels.push_back(std::move(kernel));
  }
  std::vector<std::vector<double>> samples(kernels.size());
  for (int round = 0; round < kWarmUpRounds + kRounds; ++round)
    for (size_t i = 0; i < kernels.size(); ++i) {
      MOEC_ASSIGN_OR_RETURN(const double seconds, kernels[i].run());
      if (round >= kWarmUpRounds) samples[i].push_back(seconds);
    }
  for (size_t i = 0; i < kernels.size(); ++i) call.times[i].seconds = median(samples[i]);
  const auto fastest = std::ranges::min_element(call.times, {}, &VariantTime::seconds);
  if (fastest->seconds < (1 - kNoise) * call.times.front().seconds)
    call.best = static_cast<size_t>(fastest - call.times.begin());
  return {};
}

/// What the best variant saves of a step, by the times of single kernels.
double expected_gain(const TunedCall& call, const fb::RecipeT& recipe) {
  return call.calls_per_step(recipe) * (call.times.front().seconds - call.times[call.best].seconds);
}

Result<double> fastest_step(const fb::PlanT& plan, const Lane& lane) {
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  MOEC_ASSIGN_OR_RETURN(auto loaded, runtime::parse_plan(std::string(bytes.begin(), bytes.end()), "tuning"));
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, new_session(std::move(loaded), lane));
  MOEC_RETURN_IF_ERROR(warm_up(session));
  MOEC_ASSIGN_OR_RETURN(double fastest, seconds_per_step(session, 1));
  const int steps = std::clamp(static_cast<int>(kRunSeconds / fastest), 1, kMostSteps);
  for (int i = 0; i < kStepRuns; ++i) {
    MOEC_ASSIGN_OR_RETURN(const double seconds, seconds_per_step(session, steps));
    fastest = std::min(fastest, seconds);
  }
  return fastest;
}

/// The fastest step of either plan, in turns, so that a drift of the clocks meets both.
Result<std::pair<double, double>> compare_steps(const fb::PlanT& a, const fb::PlanT& b, const Lane& lane) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  std::pair fastest(kNone, kNone);
  for (int turn = 0; turn < kTurns; ++turn) {
    MOEC_ASSIGN_OR_RETURN(const double seconds_a, fastest_step(a, lane));
    MOEC_ASSIGN_OR_RETURN(const double seconds_b, fastest_step(b, lane));
    fastest = {std::min(fastest.first, seconds_a), std::min(fastest.second, seconds_b)};
  }
  return fastest;
}

/// Keeps the variants that make the step faster.
Status try_variants(const fb::PlanT& plan, const Lane& lane, std::string_view model,
                    const TuningObserver& observer, Tuning& tuning) {
  std::vector<TunedCall*> trials;
  for (TunedCall& call : tuning.calls)
    if (call.best != 0) trials.push_back(&call);
  std::ranges::sort(trials, std::ranges::greater(),
                    [&](const TunedCall* call) { return expected_gain(*call, *plan.recipe); });
  for (TunedCall* call : trials) {
    const fb::PlanT without = tuned_plan(plan, tuning.calls, model);
    call->kept = true;
    const fb::PlanT with = tuned_plan(plan, tuning.calls, model);
    MOEC_ASSIGN_OR_RETURN(const auto seconds, compare_steps(without, with, lane));
    call->kept = seconds.second < (1 - kLeastGain) * seconds.first;
    observer.on_trial(*call, seconds.first, seconds.second);
  }
  return {};
}

}  // namespace

double TunedCall::calls_per_step(const fb::RecipeT& recipe) const {
  double calls = 0;
  for (const auto& [program, index] : instructions) {
    if (program == ProgramKind::Accumulate) calls += recipe.grad_accum;
    if (program == ProgramKind::Apply) calls += 1;
  }
  return calls;
}

Result<Tuning> tune(const std::shared_ptr<const runtime::LoadedPlan>& plan, const Lane& lane,
                    const TuningObserver& observer) {
  lane.enter();
  Tuning tuning;
  MOEC_ASSIGN_OR_RETURN(tuning.calls, open_calls(plan, lane));
  for (TunedCall& call : tuning.calls) {
    MOEC_RETURN_IF_ERROR(time_call(plan, lane, call));
    observer.on_call(call);
  }
  MOEC_ASSIGN_OR_RETURN(const auto device, lane.make_device());
  const std::string model(device->model());
  MOEC_RETURN_IF_ERROR(try_variants(plan->plan, lane, model, observer, tuning));
  tuning.plan = tuned_plan(plan->plan, tuning.calls, model);
  return tuning;
}

fb::PlanT tuned_plan(const fb::PlanT& plan, std::span<const TunedCall> calls, std::string_view model) {
  fb::PlanT tuned(plan);
  tuned.variants.clear();
  tuned.tuned_for.clear();
  for (const auto& program : tuned.programs)
    for (const auto& instruction : program->instructions) instruction->variant = 0;
  for (const TunedCall& call : calls) {
    if (!call.kept) continue;
    const std::string& variant = call.times[call.best].variant;
    const auto known = std::ranges::find(tuned.variants, variant);
    const auto place = static_cast<uint32_t>(known - tuned.variants.begin() + 1);
    if (known == tuned.variants.end()) tuned.variants.push_back(variant);
    for (const auto& [kind, index] : call.instructions)
      for (const auto& program : tuned.programs)
        if (program->kind == kind) program->instructions[index]->variant = place;
    tuned.tuned_for = model;
  }
  return tuned;
}

}  // namespace moec::tuning
