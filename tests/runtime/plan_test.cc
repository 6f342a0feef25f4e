#include "runtime/plan.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "kernels/kernel.h"
#include "runtime/device.h"
#include "schema/version.h"
#include "scratch_dir.h"
#include "small_plan.h"

namespace moec::runtime {
namespace {

using test::contains;

/// The message with which `bytes` are rejected as input.
std::string rejection(const std::string& bytes) {
  const auto loaded = parse_plan(bytes, "a.plan");
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().kind == ErrorKind::kInput);
  CHECK(contains(loaded.error().message, "a.plan: "));
  CHECK_FALSE(contains(loaded.error().message, "\n"));
  return loaded.error().message;
}

TEST_CASE("a sound plan is loaded from a file and unpacked") {
  const test::ScratchDir dir;
  const auto loaded = load_plan(dir.file("small.plan", test::plan_bytes(test::small_plan())));
  REQUIRE(loaded.ok());
  const LoadedPlan& plan = **loaded;
  REQUIRE(plan.program(fb::ProgramKind::Evaluate) != nullptr);
  CHECK(plan.program(fb::ProgramKind::Evaluate)->instructions.size() == 3);
  CHECK(cost_of(*plan.program(fb::ProgramKind::Evaluate)).flops == 12);
  CHECK(plan.program(fb::ProgramKind::Decode) == nullptr);
  CHECK(plan.parameter_index("weight") == 0);
  CHECK(plan.parameter_index("weights") == -1);
}

TEST_CASE("what is not a plan is named for what it is") {
  CHECK(contains(rejection(""), "too short"));
  CHECK(contains(rejection("just some text"), "identifier is ' som'"));
  CHECK(contains(rejection(std::string("\x10\0\0\0MOEM and so on", 18)), "this is a model"));
  CHECK(load_plan("/no/such/file.plan").error().kind == ErrorKind::kInput);
}

TEST_CASE("another version is refused with both numbers") {
  fb::PlanT plan = test::small_plan();
  plan.version = 7;
  CHECK(contains(rejection(test::plan_bytes(plan)),
                 fmt::format("plan version 7; this build reads version {}", kPlanVersion)));
  plan.version = 1;  // whose calls this build would take for others
  CHECK(contains(rejection(test::plan_bytes(plan)),
                 fmt::format("plan version 1; this build reads version {}", kPlanVersion)));
}

TEST_CASE("an unsound plan is refused with the validator's first fault") {
  fb::PlanT plan = test::small_plan();
  plan.arenas[0]->size = 8;
  CHECK(contains(rejection(test::plan_bytes(plan)), "weight"));
}

TEST_CASE("a kernel with another op's attributes is refused") {
  fb::PlanT plan = test::small_plan();
  plan.programs[1]->instructions[2]->op.Set(fb::GeluT{});
  CHECK(contains(rejection(test::plan_bytes(plan)), "the kernel has the attributes of 'Gelu'"));
}

/// The attributes of heads of an instruction, nullptr where it has none.
uint32_t* kv_heads_of(fb::InstructionT& instruction) {
  if (fb::AttentionT* attention = instruction.op.AsAttention()) return &attention->kv_heads;
  if (fb::RopeT* rope = instruction.op.AsRope()) return &rope->kv_heads;
  return nullptr;
}

TEST_CASE("what a checkpoint or a run would miss is refused") {
  const fb::PlanT sound = compile(read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json"));
  const auto rejected = [&](auto&& change) {
    fb::PlanT plan = sound;
    change(plan);
    const std::vector<uint8_t> bytes = serialize_plan(plan);
    return rejection(std::string(bytes.begin(), bytes.end()));
  };
  CHECK(contains(rejected([](fb::PlanT& plan) { plan.parameters[1]->moment2 = -1; }), "no moments"));
  CHECK(contains(rejected([](fb::PlanT& plan) { plan.parameters[1]->grad = -1; }), "no gradient"));
  CHECK(contains(rejected([](fb::PlanT& plan) { plan.parameters[1]->name = plan.parameters[0]->name; }),
                 "the name stands twice"));
  CHECK(contains(rejected([](fb::PlanT& plan) { plan.vocab_size = 0; }), "vocab_size: 0"));
}

TEST_CASE("heads that the operands do not hold are refused") {
  const fb::ModelT model = read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json");
  fb::PlanT plan = compile(model);
  const auto as_bytes = [&] {
    const std::vector<uint8_t> bytes = serialize_plan(plan);
    return std::string(bytes.begin(), bytes.end());
  };
  REQUIRE(parse_plan(as_bytes(), "a.plan").ok());
  int changed = 0;
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions)
      if (uint32_t* kv_heads = kv_heads_of(*instruction)) {
        for (const uint32_t wrong : {0u, *kv_heads + 1, UINT32_MAX}) {
          const uint32_t right = std::exchange(*kv_heads, wrong);
          const std::string found = rejection(as_bytes());
          CHECK_MESSAGE((contains(found, "kv_heads|heads does not hold") || contains(found, "qkv_dim")),
                        found);
          *kv_heads = right;
        }
        ++changed;
      }
  CHECK(changed > 0);
}

TEST_CASE("what the host and the kernels share is as both expect it, or the plan is refused") {
  const fb::PlanT sound = compile(read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json"));
  const auto rejected_as = [&](const char* message, auto&& change) {
    fb::PlanT plan(sound);
    change(plan, *plan.io);
    const std::string found = rejection(test::plan_bytes(plan));
    CHECK_MESSAGE(contains(found, message), found);
  };
  using Plan = fb::PlanT;
  using Io = fb::InterfaceT;
  const auto tensor = [](Plan& plan, int id) -> fb::TensorT& {
    return *plan.tensors[static_cast<size_t>(id)];
  };
  rejected_as("io.metrics: tensor 1000000 does not exist", [](Plan&, Io& io) { io.metrics = 1'000'000; });
  rejected_as("io.train_state: 'metrics' has not the type and shape U8[160]",
              [](Plan&, Io& io) { io.train_state = io.metrics; });
  rejected_as("has not the type and shape I32[N]",
              [&](Plan& plan, Io& io) { tensor(plan, io.window).shape = {}; });
  rejected_as("has not the type and shape I32[1,N]",
              [&](Plan& plan, Io& io) { std::ranges::reverse(tensor(plan, io.prompt).shape); });
  rejected_as("io.targets: ", [&](Plan& plan, Io& io) { tensor(plan, io.targets).shape[1] /= 2; });
  rejected_as("io.window: ", [&](Plan& plan, Io& io) { tensor(plan, io.window).dtype = fb::DType::F32; });
  rejected_as("io.logits: ", [](Plan&, Io& io) { io.logits = io.tokens; });
  rejected_as("lies in a buffer of kind Param, which the host does not write", [&](Plan& plan, Io& io) {
    plan.buffers[tensor(plan, io.train_state).buffer]->kind = fb::BufferKind::Param;
  });
  rejected_as("input 'state' is 'train_state', which is not where the host writes it",
              [](Plan&, Io& io) { io.train_state = -1; });
  rejected_as("input 'window' is 'window', which is not where", [](Plan&, Io& io) { io.window = -1; });
  rejected_as("is not where the host writes it", [](Plan& plan, Io&) { plan.io.reset(); });
}

TEST_CASE("every truncation is rejected") {
  const std::string bytes = test::plan_bytes(test::small_plan());
  for (size_t size = 0; size < bytes.size(); ++size)
    CHECK_FALSE(parse_plan(bytes.substr(0, size), "a.plan").ok());
}

TEST_CASE("every flipped bit is rejected") {
  const std::string bytes = test::plan_bytes(test::small_plan());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    const auto loaded = parse_plan(std::move(damaged), "a.plan");
    REQUIRE_FALSE(loaded.ok());
    CHECK(loaded.error().kind == ErrorKind::kInput);
  }
}

}  // namespace
}  // namespace moec::runtime
