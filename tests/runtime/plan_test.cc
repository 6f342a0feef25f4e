#include "runtime/plan.h"

#include <doctest/doctest.h>

#include "kernels/kernel.h"
#include "runtime/device.h"
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
  CHECK(contains(rejection(test::plan_bytes(plan)), "plan version 7; this build reads version 2"));
  plan.version = 1;  // whose calls this build would take for others
  CHECK(contains(rejection(test::plan_bytes(plan)), "plan version 1; this build reads version 2"));
}

TEST_CASE("an unsound plan is refused with the validator's first fault") {
  fb::PlanT plan = test::small_plan();
  plan.arenas[0]->size = 8;
  CHECK(contains(rejection(test::plan_bytes(plan)), "weight"));
}

TEST_CASE("a kernel with another op's attributes is refused") {
  fb::PlanT plan = test::small_plan();
  plan.programs[1]->instructions[2]->op.Set(fb::GeluT{});
  CHECK(contains(rejection(test::plan_bytes(plan)), "kernel 'silu' has the attributes of 'Gelu'"));
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
