// The example models: sizes known beforehand, arenas near the lower bound, plans that the validator accepts
// and whose mutations it rejects.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>

#include "../planner/mutations.h"
#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "kernels/catalog.h"
#include "planner/validate.h"

namespace moec::test {
namespace {

fb::ModelT example(const std::string& name) {
  return read_model(std::string(MOEC_SOURCE_DIR "/schema/examples/") + name + ".json");
}

uint64_t arena_size(const fb::PlanT& plan, fb::ArenaKind kind) {
  const auto it = std::find_if(plan.arenas.begin(), plan.arenas.end(),
                               [&](const auto& arena) { return arena->kind == kind; });
  return (*it)->size;
}

std::vector<std::string> faults_of(const fb::PlanT& plan) {
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  flatbuffers::Verifier verifier(bytes.data(), bytes.size(), 64, 1u << 24);
  REQUIRE(fb::VerifyPlanBuffer(verifier));
  return planner::validate(*fb::GetPlan(bytes.data()));
}

struct Known {
  const char* name;
  uint64_t parameters, active;
};

constexpr Known kExamples[] = {
    {"moe-tiny", 542'528, 345'920},          {"moe-6.9b", 6'882'678'528, 1'786'599'168},
    {"char-gpt", 819'018, 819'018},          {"char-moe", 481'981'631, 141'966'527},
    {"gpt2-124m", 124'439'808, 124'439'808}, {"qwen2.5-0.5b", 494'032'768, 494'032'768},
    {"moe-100m", 106'537'472, 49'914'368},
};

}  // namespace

TEST_CASE("examples have the parameters they are known by") {
  for (const auto& [name, parameters, active] : kExamples) {
    CAPTURE(std::string(name));
    const fb::PlanT plan = compile(example(name));
    CHECK(plan.total_parameters == parameters);
    CHECK(plan.active_parameters == active);
  }
}

TEST_CASE("arenas of examples are at most 1.05 times the live bytes, 1.3 times where small calls lag") {
  for (const Known& known : kExamples)
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16, fb::DType::F16})
      for (const uint32_t grad_accum : {1u, 4u}) {
        CAPTURE(std::string(known.name));
        fb::ModelT model = example(known.name);
        model.recipe->dtype = dtype;
        model.recipe->grad_accum = grad_accum;
        const fb::PlanT plan = compile(model);
        const double ratio = static_cast<double>(arena_size(plan, fb::ArenaKind::Activations)) /
                             static_cast<double>(plan.activations_lower_bound);
        CHECK(ratio <= (plan.activations_lower_bound < uint64_t{64} << 20 ? 1.3 : 1.05));
        CHECK(ratio >= 1);
      }
}

TEST_CASE("compiling the same model twice gives the same bytes") {
  CHECK(serialize_plan(compile(example("moe-tiny"))) == serialize_plan(compile(example("moe-tiny"))));
}

TEST_CASE("the validator rejects every mutation of compiled plans") {
  constexpr int kPerMutation = 40;
  int total = 0;
  for (const char* name : {"moe-tiny", "char-gpt"}) {
    fb::ModelT model = example(name);
    model.recipe->grad_accum = 2;
    const fb::PlanT sound = compile(model);
    CHECK(faults_of(sound).empty());
    for (const planner::Mutation& mutation : planner::mutations()) {
      planner::Random random(5);
      int applied = 0, rejected = 0;
      for (int attempt = 0; applied < kPerMutation && attempt < 20'000; ++attempt) {
        fb::PlanT plan(sound);
        if (!mutation.apply(plan, random)) continue;
        ++applied;
        rejected += !faults_of(plan).empty();
      }
      CAPTURE(std::string(mutation.name));
      CHECK(applied > 0);
      CHECK(rejected == applied);
      total += applied;
    }
  }
  MESSAGE(fmt::format("{} mutated plans", total));
  CHECK(total >= 1000);
}

TEST_CASE("the validator finds out that a bias, a gradient to add to or the state of a dropout was removed") {
  fb::ModelT model = example("char-gpt");
  model.recipe->grad_accum = 2;
  const fb::PlanT sound = compile(model);
  for (const char* name : {"bias", "dweight_prev", "dbias_prev", "state"}) {
    int removed = 0;
    for (size_t i = 0; i < sound.programs[1]->instructions.size(); ++i) {
      const fb::InstructionT& whole = *sound.programs[1]->instructions[i];
      const int operand = find_kernel(whole.kernel)->input_index(name);
      if (operand < 0 || whole.inputs[static_cast<size_t>(operand)] == -1) continue;
      fb::PlanT plan(sound);
      plan.programs[1]->instructions[i]->inputs[static_cast<size_t>(operand)] = -1;
      CAPTURE(whole.kernel);
      CHECK_FALSE(faults_of(plan).empty());
      ++removed;
    }
    CAPTURE(std::string(name));
    CHECK(removed > 0);
  }
}

TEST_CASE("the validator finds a gradient that is written as another type than it is read") {
  fb::PlanT plan = compile(example("moe-100m"));
  const auto program = std::ranges::find_if(
      plan.programs, [](const auto& p) { return p->kind == fb::ProgramKind::Accumulate; });
  const auto sum = std::ranges::find_if((*program)->instructions,
                                        [](const auto& i) { return i->kernel == "norm_bwd_sum"; });
  REQUIRE(sum != (*program)->instructions.end());
  fb::TensorT& gradient = *plan.tensors.at(static_cast<size_t>((*sum)->outputs[0]));
  gradient.dtype = fb::DType::I32;  // as large as f32
  CHECK(faults_of(plan).front().find("is of I32, 'grad.") != std::string::npos);
}

TEST_CASE("the validator knows which gradients the norm sums by way of their squares") {
  const fb::PlanT sound = compile(example("moe-6.9b"));
  const auto fault_of = [&](auto&& change) {
    fb::PlanT plan(sound);
    for (const auto& program : plan.programs)
      for (const auto& instruction : program->instructions)
        if (change(*instruction)) {
          const std::vector<std::string> faults = faults_of(plan);
          return faults.empty() ? std::string() : faults.front();
        }
    return std::string("nothing changed");
  };
  const auto is_norm = [](const fb::InstructionT& i) { return i.kernel == "grad_norm" && i.inputs[1] != -1; };
  const auto is_squared = [](const fb::InstructionT& i) {
    return i.kernel == "grouped_linear_bwd_weight" && i.outputs[1] != -1;
  };
  CHECK(fault_of(is_norm).empty());
  CHECK(fault_of(is_squared).empty());
  CHECK(fault_of([&](fb::InstructionT& i) {
          return is_norm(i) && (i.inputs[1] = -1);
        }).starts_with("apply: grad_norm leaves out 'grad.block."));
  CHECK(fault_of([&](fb::InstructionT& i) { return is_squared(i) && (i.outputs[1] = -1); }) ==
        "apply: grad_norm reads 'squares', which holds other things than sums of squares");
  const auto expert = std::ranges::find_if(
      sound.parameters, [](const auto& p) { return p->name.find("gate_up.weight") != std::string::npos; });
  REQUIRE(expert != sound.parameters.end());
  CHECK(fault_of([&](fb::InstructionT& i) {
          return is_norm(i) && (i.inputs[2] = (*expert)->grad);
        }).find("which share bytes") != std::string::npos);
}

TEST_CASE("plans of examples are sound in every type, and under a memory budget") {
  for (const char* name : {"moe-tiny", "char-moe", "qwen2.5-0.5b"})
    for (const fb::DType dtype : {fb::DType::F64, fb::DType::F32, fb::DType::BF16, fb::DType::F16}) {
      fb::ModelT model = example(name);
      model.recipe->dtype = dtype;
      if (dtype == fb::DType::BF16) {
        model.recipe->grad_dtype = dtype;
        model.recipe->moment_dtype = dtype;
      }
      CHECK(faults_of(compile(model)).empty());
      const std::vector<FrontierPoint> points = frontier(model);
      model.recipe->memory_budget = points.back().bytes;
      CHECK(faults_of(compile(model)).empty());
    }
}

}  // namespace moec::test
