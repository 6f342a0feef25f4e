// Plans that choose variants of kernels.
#include "runtime/tuning/tuning.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "compiler/compile.h"
#include "schema/plan_file.h"
#include "scratch_dir.h"
#include "tests/support/must.h"
#include "tests/support/training.h"

namespace moec::tuning {
namespace {

using test::must;

fb::PlanT tiny_plan() {
  fb::ModelT model = test::example_model("moe-tiny");
  model.recipe->batch_size = 2;
  model.recipe->seq_len = 32;
  return compile(model);
}

std::shared_ptr<const runtime::LoadedPlan> parsed(const fb::PlanT& plan) {
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  return must(runtime::parse_plan(std::string(bytes.begin(), bytes.end()), "tiny.plan"));
}

/// All calls of a kernel, with this variant the best.
TunedCall choose(const fb::PlanT& plan, const std::string& kernel, const std::string& variant) {
  TunedCall call{.kernel = kernel,
                 .shapes = {},
                 .instructions = {},
                 .times = {{"", 2e-6}, {variant, 1e-6}},
                 .best = 1,
                 .kept = true};
  for (const auto& program : plan.programs)
    for (size_t i = 0; i < program->instructions.size(); ++i)
      if (program->instructions[i]->kernel == kernel) call.instructions.emplace_back(program->kind, i);
  return call;
}

uint64_t state_after_steps(const fb::PlanT& plan) {
  auto session = must(runtime::Session::create(parsed(plan), runtime::make_cpu_device()));
  must(session.initialise(3, 1e-3));
  must(session.set_data(test::learnable_tokens(5000, 256, 1), {}));
  for (int step = 0; step < 3; ++step) must(session.train_step());
  return must(session.state_hash());
}

TEST_CASE("choices of a tuning run are in the plan file, and only there") {
  const fb::PlanT plan = tiny_plan();
  const std::vector<TunedCall> calls = {choose(plan, "attention", "hopper"), choose(plan, "linear", "tiled"),
                                        choose(plan, "linear_bwd_weight", "tiled")};
  const fb::PlanT tuned = tuned_plan(plan, calls, "some device");
  CHECK(tuned.variants == std::vector<std::string>{"hopper", "tiled"});
  CHECK(serialize_plan(tuned_plan(tuned, {}, "some device")) == serialize_plan(plan));
  const auto loaded = parsed(tuned);
  CHECK(loaded->plan.tuned_for == "some device");
  size_t chosen = 0;
  for (const auto& program : loaded->plan.programs)
    for (const auto& instruction : program->instructions) {
      const std::string_view variant = runtime::variant_of(loaded->plan, *instruction);
      const std::string& kernel = instruction->kernel;
      const bool linear = kernel == "linear" || kernel == "linear_bwd_weight";
      CHECK(variant == (kernel == "attention" ? "hopper" : linear ? "tiled" : ""));
      chosen += !variant.empty();
    }
  CHECK(chosen == calls[0].instructions.size() + calls[1].instructions.size() + calls[2].instructions.size());
}

TEST_CASE("a device of another model makes its own choices, with the same bits as ever") {
  const fb::PlanT plan = tiny_plan();
  const std::vector<TunedCall> calls = {choose(plan, "linear", "tiled")};
  CHECK(state_after_steps(tuned_plan(plan, calls, "some device")) == state_after_steps(plan));
}

TEST_CASE("all variants that a device lacks are named at once") {
  const fb::PlanT plan = tiny_plan();
  const std::vector<TunedCall> calls = {choose(plan, "linear", "tiled"), choose(plan, "attention", "hopper")};
  const Status status = runtime::make_cpu_device()->load(parsed(tuned_plan(plan, calls, "cpu")));
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().kind == ErrorKind::kInput);
  CHECK(test::contains(status.error().message, "has no kernel for: attention (hopper), linear (tiled)"));
}

TEST_CASE("there is nothing to choose on the CPU") {
  const fb::PlanT plan = tiny_plan();
  const TuningObserver observer = {.on_call = [](const TunedCall&) { FAIL("a call"); },
                                   .on_trial = [](const TunedCall&, double, double) { FAIL("a trial"); }};
  const Tuning tuning = must(tune(parsed(plan), Lane::cpu(1), observer));
  CHECK(tuning.calls.empty());
  CHECK(serialize_plan(tuning.plan) == serialize_plan(plan));
}

}  // namespace
}  // namespace moec::tuning
