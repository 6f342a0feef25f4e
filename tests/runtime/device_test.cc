#include "runtime/device.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <vector>

#include "scratch_dir.h"
#include "small_plan.h"

namespace moec::runtime {
namespace {

using test::contains;

std::shared_ptr<const LoadedPlan> loaded_small_plan() {
  auto plan = parse_plan(test::plan_bytes(test::small_plan()), "small.plan");
  REQUIRE(plan.ok());
  return *plan;
}

std::array<float, 4> read(Device& device, int tensor) {
  std::array<float, 4> values{};
  REQUIRE(device.read(tensor, 0, std::as_writable_bytes(std::span(values))).ok());
  return values;
}

TEST_CASE("the CPU device runs instructions in order on zeroed arenas") {
  const auto device = make_cpu_device();
  REQUIRE(device->load(loaded_small_plan()).ok());
  CHECK(read(*device, test::kWeight) == std::array<float, 4>{});
  REQUIRE(device->run(fb::ProgramKind::Evaluate).ok());
  CHECK(read(*device, test::kSum) == std::array{3.f, 3.f, 3.f, 3.f});
  REQUIRE(device->run(fb::ProgramKind::Init).ok());
  REQUIRE(device->run(fb::ProgramKind::Evaluate).ok());
  CHECK(read(*device, test::kSum) == std::array{5.f, 5.f, 5.f, 5.f});
  CHECK(read(*device, test::kSilu)[0] == doctest::Approx(5 / (1 + std::exp(-5.))));
  CHECK(contains(device->run(fb::ProgramKind::Prefill).error().message, "no Prefill program"));
}

TEST_CASE("activations are poisoned on request, and nothing else") {
  const auto device = make_cpu_device();
  REQUIRE(device->load(loaded_small_plan(), {.poison_activations = true}).ok());
  for (const float x : read(*device, test::kThree)) CHECK(std::isnan(x));
  CHECK(read(*device, test::kWeight) == std::array<float, 4>{});
}

TEST_CASE("a traced run shows every instruction, and the tracer can end it") {
  const auto device = make_cpu_device();
  REQUIRE(device->load(loaded_small_plan()).ok());
  std::vector<std::string> seen;
  const Tracer tracer = [&](const TraceEvent& event) -> Status {
    CHECK(event.index == seen.size());
    CHECK(event.seconds >= 0);
    seen.push_back(event.instruction->label);
    if (event.index == 1) CHECK(read(*device, test::kSum)[3] == 3);
    return {};
  };
  REQUIRE(device->run(fb::ProgramKind::Evaluate, tracer).ok());
  CHECK(seen == std::vector<std::string>{"small.fill", "small.add", "small.silu"});
  int calls = 0;
  const Tracer ending = [&](const TraceEvent&) -> Status {
    ++calls;
    return failure("enough");
  };
  CHECK(device->run(fb::ProgramKind::Evaluate, ending).error().message == "enough");
  CHECK(calls == 1);
}

TEST_CASE("copies reach exactly the range asked for, and never outside of a tensor") {
  const auto device = make_cpu_device();
  REQUIRE(device->load(loaded_small_plan()).ok());
  const float nine = 9;
  REQUIRE(device->write(test::kWeight, 8, std::as_bytes(std::span(&nine, 1))).ok());
  CHECK(read(*device, test::kWeight) == std::array{0.f, 0.f, 9.f, 0.f});
  CHECK(contains(device->write(test::kWeight, 13, std::as_bytes(std::span(&nine, 1))).error().message,
                 "'weight'"));
  CHECK_FALSE(device->write(test::kWeight, ~uint64_t{0}, std::as_bytes(std::span(&nine, 1))).ok());
  CHECK_FALSE(device->write(-1, 0, std::as_bytes(std::span(&nine, 1))).ok());
  CHECK_FALSE(device->write(99, 0, std::as_bytes(std::span(&nine, 1))).ok());
}

TEST_CASE("staged bytes and late reads arrive in the order of runs") {
  const auto device = make_cpu_device();
  REQUIRE(device->load(loaded_small_plan()).ok());
  const std::array<float, 2> staged{7, 8};
  REQUIRE(device->stage(std::as_bytes(std::span(staged))).ok());
  const auto before = device->read_later(test::kWeight, 0, 16);
  REQUIRE(device->write_staged(test::kWeight).ok());
  const auto after = device->read_later(test::kWeight, 4, 8);
  REQUIRE(before.ok());
  REQUIRE(after.ok());
  CHECK(read(*device, test::kWeight) == std::array{7.f, 8.f, 0.f, 0.f});
  CHECK(*(*before)->ready());
  CHECK((*before)->bytes().size() == 16);
  CHECK((*before)->bytes()[2] == std::byte{0});
  CHECK((*after)->bytes()[2] == std::byte{0x00});
  CHECK((*after)->bytes()[3] == std::byte{0x41});  // 8 = 0x41000000
  CHECK(*(*after)->seconds() >= 0);
  CHECK_FALSE(device->read_later(test::kWeight, 8, 16).ok());
  CHECK_FALSE(device->read_later(test::kWeight, 0, Device::kMostLateBytes + 1).ok());
  const std::array<float, 5> long_one{};
  REQUIRE(device->stage(std::as_bytes(std::span(long_one))).ok());
  CHECK_FALSE(device->write_staged(test::kWeight).ok());
}

TEST_CASE("a timeline on the CPU holds every instruction in order") {
  const auto device = make_cpu_device();
  REQUIRE(device->load(loaded_small_plan()).ok());
  CHECK_FALSE(device->records_replays());
  CHECK_FALSE(device->start_timeline(TimelineDetail::kReplays).ok());
  REQUIRE(device->start_timeline(TimelineDetail::kInstructions).ok());
  REQUIRE(device->run(fb::ProgramKind::Evaluate).ok());
  const auto timeline = device->stop_timeline();
  REQUIRE(timeline.ok());
  REQUIRE(timeline->instructions.size() == 3);
  for (size_t i = 0; i < 3; ++i) {
    const InstructionSpan& span = timeline->instructions[i];
    CHECK(span.instruction == i);
    CHECK(span.time.end >= span.time.begin);
    if (i > 0) CHECK(span.time.begin >= timeline->instructions[i - 1].time.end);
  }
  CHECK(read(*device, test::kSum) == std::array{3.f, 3.f, 3.f, 3.f});
}

TEST_CASE("an arena that does not fit is an error that names its bytes") {
  fb::PlanT plan = test::small_plan();
  plan.arenas[1]->size = uint64_t{1} << 47;
  const auto loaded = parse_plan(test::plan_bytes(plan), "huge.plan");
  REQUIRE(loaded.ok());
  const Status status = make_cpu_device()->load(*loaded);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().kind == ErrorKind::kFailure);
  CHECK(contains(status.error().message, "State arena of 140737488355328 bytes"));
  CHECK(contains(status.error().message,
                 "the plan needs 140737488355840 bytes: Params 256, State 140737488355328"));
}

/// Has arenas and one kernel.
class OneKernelDevice final : public Device {
 public:
  std::string_view name() const override { return "one"; }
  bool has_kernel(std::string_view key) const override { return key == "fill"; }
  Status wait() override { return {}; }

 private:
  Result<void*> allocate(uint64_t, bool) override { return failure("not reached"); }
  Status fill(void*, uint8_t, uint64_t) override { return {}; }
  Status copy_in(void*, std::span<const std::byte>) override { return {}; }
  Status copy_out(std::span<std::byte>, const void*) override { return {}; }
  Status prepare() override { return {}; }
  Result<double> execute_one(size_t, size_t) override { return 0.0; }
};

TEST_CASE("all kernels that a device lacks are named at once") {
  OneKernelDevice device;
  const Status status = device.load(loaded_small_plan());
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().message == "small.plan: device 'one' has no kernel for: add, silu");
  CHECK_FALSE(device.run(fb::ProgramKind::Init).ok());
}

}  // namespace
}  // namespace moec::runtime
