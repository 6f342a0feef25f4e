#include "planner/validate.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "mutations.h"
#include "sample_plans.h"

namespace moec::planner {
namespace {

/// The plan as bytes, as the loader gets it.
flatbuffers::DetachedBuffer pack(const fb::PlanT& plan) {
  flatbuffers::FlatBufferBuilder builder;
  fb::FinishPlanBuffer(builder, fb::Plan::Pack(builder, &plan));
  return builder.Release();
}

std::vector<std::string> faults_of(const fb::PlanT& plan) {
  const flatbuffers::DetachedBuffer bytes = pack(plan);
  flatbuffers::Verifier verifier(bytes.data(), bytes.size());
  REQUIRE(fb::VerifyPlanBuffer(verifier));
  return validate(*fb::GetPlan(bytes.data()));
}

TEST_CASE("sound plans are accepted") {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const auto faults = faults_of(*sample_plan(seed, 5 + static_cast<int>(seed)));
    CAPTURE(seed);
    INFO((faults.empty() ? std::string() : faults[0]));
    CHECK(faults.empty());
  }
}

TEST_CASE("every one of 2,200 mutations is rejected") {
  for (const Mutation& mutation : mutations()) {
    Random random(11);
    int applied = 0, rejected = 0;
    for (uint32_t attempt = 0; applied < 100; ++attempt) {
      REQUIRE(attempt < 100'000);
      const auto plan = sample_plan(attempt % 16, 40);
      if (!mutation.apply(*plan, random)) continue;
      ++applied;
      rejected += !faults_of(*plan).empty();
    }
    INFO(std::string(mutation.name));
    CHECK(rejected == applied);
  }
}

TEST_CASE("a fault line names the instruction, the tensor and the culprit") {
  const auto plan = sample_plan(3, 30);
  fb::ProgramT& program = *plan->programs[1];
  const size_t scale = program.instructions.size() - 2;
  program.instructions[scale]->inputs[0] = program.instructions[0]->outputs[0];
  plan->tensors[program.instructions[0]->outputs[0]]->name = "early";
  const auto faults = faults_of(*plan);
  REQUIRE_FALSE(faults.empty());
  CHECK(faults[0].find(fmt::format("accumulate[{}] scale (block.scale): reads 'early' but its bytes were "
                                   "overwritten by instruction ",
                                   scale)) == 0);
}

TEST_CASE("operands of types that the kernel does not take together are named") {
  const auto plan = sample_plan(3, 30);
  const fb::InstructionT& scale =
      *plan->programs[1]->instructions[plan->programs[1]->instructions.size() - 2];
  plan->tensors[static_cast<size_t>(scale.outputs[0])]->dtype = fb::DType::BF16;
  const auto faults = faults_of(*plan);
  REQUIRE_FALSE(faults.empty());
  CHECK(faults[0].find("scale (block.scale): the operands' types do not fit the kernel: F32 -> BF16") !=
        std::string::npos);
}

/// The first instruction of a program with this kernel.
fb::InstructionT& instruction_of(const fb::PlanT& plan, size_t program, std::string_view kernel) {
  const auto& instructions = plan.programs[program]->instructions;
  const auto found = std::ranges::find_if(instructions, [&](const auto& i) { return i->kernel == kernel; });
  REQUIRE(found != instructions.end());
  return **found;
}

std::string first_fault(const fb::PlanT& plan) {
  const auto faults = faults_of(plan);
  return faults.empty() ? "" : faults.front();
}

TEST_CASE("operands whose shapes do not go together are named, with what was expected") {
  const auto plan = sample_plan(3, 30);
  const fb::InstructionT& linear = instruction_of(*plan, 1, "linear");
  std::vector<uint64_t>& shape = plan->tensors[static_cast<size_t>(linear.inputs[1])]->shape;
  const std::vector<uint64_t> x = plan->tensors[static_cast<size_t>(linear.inputs[0])]->shape;
  shape = {shape[0] * shape[1]};
  const std::string fault = first_fault(*plan);
  CHECK_MESSAGE(fault.find(fmt::format("linear (block.linear): 'weight' is [{}], expected [o,i] with i = {}",
                                       shape[0], x[1])) != std::string::npos,
                fault);
}

TEST_CASE("a kernel's attributes are those of its op") {
  const auto plan = sample_plan(3, 30);
  instruction_of(*plan, 1, "scale").op.Set(fb::RopeT());
  CHECK(first_fault(*plan).ends_with("scale (block.scale): the kernel has the attributes of 'Rope'"));
}

TEST_CASE("unknown enumerators are named") {
  const auto fault_of = [](auto&& change) {
    const auto plan = sample_plan(3, 30);
    change(*plan);
    return first_fault(*plan);
  };
  CHECK(fault_of([](fb::PlanT& plan) {
          instruction_of(plan, 2, "lr_schedule").op.AsLrSchedule()->schedule =
              std::make_unique<fb::ScheduleT>();
          instruction_of(plan, 2, "lr_schedule").op.AsLrSchedule()->schedule->kind = fb::ScheduleKind(9);
        }).ends_with("lr_schedule (block.lr_schedule): unknown enumerator of schedule.kind"));
  CHECK(fault_of([](fb::PlanT& plan) {
          plan.recipe->sampling = fb::Sampling(9);
        }).starts_with("recipe: sampling must be"));

  const auto plan = sample_plan(3, 30);
  plan->model->blocks.push_back(std::make_unique<fb::BlockT>());
  plan->model->blocks[0]->nodes.push_back(std::make_unique<fb::NodeT>());
  plan->model->blocks[0]->nodes[0]->op.Set(fb::SiluT());
  CHECK_FALSE(first_fault(*plan).starts_with("model: "));
  flatbuffers::DetachedBuffer damaged = pack(*plan);
  auto& node =
      const_cast<fb::Node&>(*fb::GetPlan(damaged.data())->model()->blocks()->Get(0)->nodes()->Get(0));
  REQUIRE(reinterpret_cast<flatbuffers::Table&>(node).SetField<uint8_t>(fb::Node::VT_OP_TYPE, 200, 0));
  CHECK(validate(*fb::GetPlan(damaged.data())) ==
        std::vector<std::string>{"model: '' of block '': unknown op 200"});
}

TEST_CASE("a recipe that contradicts itself is refused by the name of the field") {
  const auto check = [](const char* field, auto&& change) {
    const auto plan = sample_plan(3, 30);
    plan->recipe->adamw = std::make_unique<fb::AdamWT>();
    plan->recipe->schedule = std::make_unique<fb::ScheduleT>();
    change(*plan->recipe);
    const std::string fault = first_fault(*plan);
    CHECK_MESSAGE(fault.starts_with(fmt::format("recipe: {} must", field)), fault);
  };
  using Recipe = fb::RecipeT;
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  check("batch_size", [](Recipe& recipe) { recipe.batch_size = 0; });
  check("grad_accum", [](Recipe& recipe) { recipe.grad_accum = 0; });
  check("dtype", [](Recipe& recipe) { recipe.dtype = fb::DType(77); });
  check("grad_dtype", [](Recipe& recipe) { recipe.grad_dtype = fb::DType::BF16; });
  check("moment_dtype", [](Recipe& recipe) { recipe.moment_dtype = fb::DType::F16; });
  check("lr", [](Recipe& recipe) { recipe.lr = -1; });
  check("clip_norm", [](Recipe& recipe) { recipe.clip_norm = -1; });
  check("adamw: beta1", [](Recipe& recipe) { recipe.adamw->beta1 = 1; });
  check("adamw: beta2", [](Recipe& recipe) { recipe.adamw->beta2 = kNan; });
  check("adamw: eps", [](Recipe& recipe) { recipe.adamw->eps = -1; });
  check("schedule: total_steps", [](Recipe& recipe) {
    recipe.schedule->kind = fb::ScheduleKind::Cosine;
    recipe.schedule->total_steps = recipe.schedule->warmup_steps = 5;
  });
}

TEST_CASE("the gradient norm sums what adamw uses, once") {
  const auto fault_of = [](auto&& change) {
    const auto plan = sample_plan(3, 30);
    change(*plan, instruction_of(*plan, 2, "grad_norm").inputs);
    return first_fault(*plan);
  };
  using Ids = std::vector<int>;
  CHECK(fault_of([](fb::PlanT&, Ids&) {}).empty());
  CHECK(fault_of([](fb::PlanT&, Ids& inputs) { inputs.pop_back(); }) == "apply: grad_norm leaves out 'norm'");
  CHECK(fault_of([](fb::PlanT& plan, Ids& inputs) { inputs[2] = plan.parameters[1]->grad; }) ==
        "apply: grad_norm leaves out 'norm'");
  CHECK(fault_of([](fb::PlanT& plan, Ids& inputs) { inputs[2] = plan.parameters[1]->moment1; }) ==
        "apply: grad_norm sums 'linear', which is no gradient that adamw uses");
  CHECK(fault_of([](fb::PlanT& plan, Ids&) {
          auto& apply = plan.programs[2]->instructions;
          std::swap(apply[1], apply[2]);
        }) == "apply[1] adamw (block.adamw): no grad_norm in front of it");
}

TEST_CASE("init writes the parameters, and nothing is read that nobody writes") {
  const auto fault_of = [](auto&& change) {
    const auto plan = sample_plan(3, 30);
    change(*plan);
    return first_fault(*plan);
  };
  const auto init = [](fb::PlanT & plan) -> auto& { return plan.programs[0]->instructions; };
  CHECK(fault_of([](fb::PlanT&) {}).empty());
  CHECK(fault_of([&](fb::PlanT& plan) { init(plan).erase(init(plan).begin()); }) ==
        "parameter 'norm.0': no instruction of init writes all of 'norm'");
  CHECK(fault_of([&](fb::PlanT& plan) {
          init(plan).pop_back();
        }).ends_with(": reads 'x', which nothing has written"));
  CHECK(fault_of([&](fb::PlanT& plan) {  // all but the last parameter
          fb::TensorT& written = *plan.tensors[static_cast<size_t>(init(plan)[0]->outputs[0])];
          written.shape[0] -= 1;
        }) == "parameter 'linear.5': no instruction of init writes all of 'linear'");
  CHECK(fault_of([](fb::PlanT& plan) {
          plan.parameters.clear();
          plan.model->blocks.push_back(std::make_unique<fb::BlockT>());
        }) == "the plan of a model has no parameters");
}

TEST_CASE("variants are the kernel's, named in the plan, and for a device") {
  const auto fault_of = [](auto&& change) {
    const auto plan = sample_plan(1, 10);
    plan->variants = {"hopper", "tiled"};
    plan->tuned_for = "a device";
    change(*plan);
    const auto faults = faults_of(*plan);
    return faults.empty() ? "" : faults.front();
  };
  const auto variant = [](fb::PlanT& plan) -> uint32_t& {
    return plan.programs[0]->instructions[0]->variant;
  };
  const auto ends_with = [&](const std::string& end, auto&& change) {
    const std::string fault = fault_of(change);
    INFO(fault);
    CHECK(fault.ends_with(end));
  };
  CHECK(fault_of([](fb::PlanT&) {}).empty());
  ends_with("the kernel has no variant 'tiled'", [&](fb::PlanT& plan) { variant(plan) = 2; });
  ends_with("variant 3 of the plan's 2", [&](fb::PlanT& plan) { variant(plan) = 3; });
  ends_with("a variant of a plan that is tuned for no device", [&](fb::PlanT& plan) {
    variant(plan) = 2;
    plan.tuned_for.clear();
  });
}

TEST_CASE("a plan of no model is sound, one that passes the verifier with nothing in it is survived") {
  fb::PlanT plan;
  plan.model = std::make_unique<fb::ModelT>();
  plan.recipe = std::make_unique<fb::RecipeT>();
  CHECK(faults_of(plan).empty());
  plan.programs.push_back(std::make_unique<fb::ProgramT>());
  plan.programs[0]->instructions.push_back(std::make_unique<fb::InstructionT>());
  plan.programs[0]->instructions[0]->op.Set(fb::SiluT());
  CHECK_FALSE(faults_of(plan).empty());
}

TEST_CASE("absurd shapes neither overflow nor pass") {
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  for (const std::vector<uint64_t>& shape :
       std::vector<std::vector<uint64_t>>{{kHuge},
                                          {kHuge, kHuge},
                                          {uint64_t{1} << 32, uint64_t{1} << 32},
                                          {0, kHuge, kHuge},
                                          {1, 1, 1, 1, 1}}) {
    const auto plan = sample_plan(5, 20);
    plan->tensors[plan->io->logits]->shape = shape;
    CHECK_FALSE(faults_of(*plan).empty());
  }
}

TEST_CASE("plans with flipped bytes that pass the verifier are survived") {
  Random random(1);
  int survived = 0;
  for (uint32_t seed = 0; seed < 8; ++seed) {
    const flatbuffers::DetachedBuffer sound = pack(*sample_plan(seed, 20));
    for (int i = 0; i < 500; ++i) {
      std::vector<uint8_t> bytes(sound.data(), sound.data() + sound.size());
      for (size_t flips = 1 + random() % 4; flips > 0; --flips)
        bytes[random() % bytes.size()] = static_cast<uint8_t>(random() % 3 ? random() : random() % 2 * 255);
      flatbuffers::Verifier verifier(bytes.data(), bytes.size());
      if (!fb::VerifyPlanBuffer(verifier)) continue;
      CHECK(validate(*fb::GetPlan(bytes.data())).size() <= 100);
      ++survived;
    }
  }
  MESSAGE(fmt::format("{} damaged plans passed the verifier", survived));
  CHECK(survived > 100);
}

TEST_CASE("a plan of 2,500 instructions is checked in a fraction of a second") {
  const flatbuffers::DetachedBuffer bytes = pack(*sample_plan(1, 2'500));
  const auto start = std::chrono::steady_clock::now();
  const auto faults = validate(*fb::GetPlan(bytes.data()));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  MESSAGE(fmt::format("2,500 instructions: {:.4f} s", seconds));
  CHECK(faults.empty());
}

}  // namespace
}  // namespace moec::planner
