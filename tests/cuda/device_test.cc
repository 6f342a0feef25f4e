// The CUDA device itself: machines without it, execution modes, copies, memory, faults.
#include <doctest/doctest.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <limits>
#include <vector>

#include "tests/cuda/gpu.h"
#include "tests/runtime/small_plan.h"
#include "tests/support/training.h"
#include "tests/tools/process.h"

namespace moec::test {
namespace {

using runtime::check_cuda_machine;
using runtime::Execution;

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

std::array<float, 4> read(runtime::Device& device, int tensor) {
  std::array<float, 4> values{};
  must(device.read(tensor, 0, std::as_writable_bytes(std::span(values))));
  return values;
}

}  // namespace

TEST_CASE("a machine that cannot run CUDA is told why in one line") {
  const auto message = [](const runtime::CudaMachine& machine) {
    return check_cuda_machine(machine).error().message;
  };
  CHECK(has(message({.driver_version = 0, .runtime_version = 13000, .devices = 0}), "no NVIDIA driver"));
  CHECK(has(message({.driver_version = 12080, .runtime_version = 13000, .devices = 1}),
            "supports CUDA 12.8, this build needs CUDA 13.0: update the driver"));
  CHECK(has(message({.driver_version = 13000, .runtime_version = 13000, .devices = 0}), "no GPU is visible"));
  CHECK(check_cuda_machine({.driver_version = 13000, .runtime_version = 13010, .devices = 1}).ok());
}

TEST_SUITE_BEGIN("gpu");

TEST_CASE("the CUDA device runs instructions in order on zeroed arenas, in every mode") {
  const auto plan = must(runtime::parse_plan(plan_bytes(small_plan()), "small.plan"));
  for (const Execution execution : {Execution::kEager, Execution::kSegmented, Execution::kWhole}) {
    const auto device = cuda_device(execution);
    must(device->load(plan));
    CHECK(read(*device, kWeight) == std::array<float, 4>{});
    for (int run = 0; run < 3; ++run) {  // the second captures, the third replays
      const float start = static_cast<float>(run);
      must(device->write(kWeight, 4, std::as_bytes(std::span(&start, 1))));
      must(device->run(fb::ProgramKind::Evaluate));
      CHECK(read(*device, kSum)[1] == 3 + start);
    }
    must(device->run(fb::ProgramKind::Init));
    CHECK(read(*device, kWeight) == std::array{2.f, 2.f, 2.f, 2.f});
    constexpr fb::ProgramKind kBoth[] = {fb::ProgramKind::Init, fb::ProgramKind::Evaluate};
    must(device->run(kBoth));
    must(device->run(kBoth));
    CHECK(read(*device, kSum) == std::array{5.f, 5.f, 5.f, 5.f});
  }
}

TEST_CASE("a traced run shows every instruction and its time") {
  const auto device = cuda_device();
  must(device->load(must(runtime::parse_plan(plan_bytes(small_plan()), "small.plan"))));
  std::vector<std::string> seen;
  must(device->run(fb::ProgramKind::Evaluate, [&](const runtime::TraceEvent& event) -> Status {
    CHECK(event.seconds > 0);
    seen.push_back(event.instruction->label);
    if (event.index == 1) CHECK(read(*device, kSum)[3] == 3);
    return {};
  }));
  CHECK(seen == std::vector<std::string>{"small.fill", "small.add", "small.silu"});
}

TEST_CASE("a timeline shows the replays and every instruction of them, and nobody waits") {
  runtime::Session session = must(training_session(example_model("char-gpt"), cuda_device()));
  runtime::Device& device = session.device();
  if (!device.records_replays()) {
    MESSAGE("skipped: CUPTI is not installed");
    return;
  }
  constexpr size_t kSteps = 20;
  const auto take_steps = [&] {
    for (size_t step = 0; step < kSteps; ++step) must(session.train_step());
  };
  take_steps();
  must(device.start_timeline(runtime::TimelineDetail::kReplays));
  take_steps();
  const runtime::Timeline replays = must(device.stop_timeline());
  CHECK(replays.replays.size() == kSteps);
  CHECK(replays.host_waits == 0);
  for (size_t i = 1; i < kSteps; ++i) CHECK(replays.replays[i].begin >= replays.replays[i - 1].end);

  must(device.start_timeline(runtime::TimelineDetail::kInstructions));
  take_steps();
  const runtime::Timeline timeline = must(device.stop_timeline());
  const auto& programs = session.plan().plan.programs;
  std::vector<std::pair<size_t, size_t>> expected;
  for (size_t step = 0; step < kSteps; ++step)
    for (const fb::ProgramKind kind : {fb::ProgramKind::Accumulate, fb::ProgramKind::Apply})
      for (size_t program = 0; program < programs.size(); ++program)
        for (size_t i = 0; programs[program]->kind == kind && i < programs[program]->instructions.size(); ++i)
          expected.emplace_back(program, i);
  std::vector<std::pair<size_t, size_t>> seen;
  double end = 0;
  for (const runtime::InstructionSpan& span : timeline.instructions) {
    CHECK(span.time.begin >= end);
    CHECK(span.time.end > span.time.begin);
    end = span.time.end;
    seen.emplace_back(span.program, span.instruction);
  }
  CHECK(seen == expected);

  // A wait is seen.
  must(device.start_timeline(runtime::TimelineDetail::kReplays));
  must(session.train_step());
  must(session.read_metrics(session.step() - 1).status());
  CHECK(must(device.stop_timeline()).host_waits > 0);
}

TEST_CASE("the device takes the memory that was planned, within 1%") {
  fb::ModelT model = example_model("gpt2-124m");
  for (const auto& block : model.blocks) block->repeat = std::min(2u, block->repeat);
  model.recipe->batch_size = 1;
  model.recipe->seq_len = 256;
  runtime::Session session = must(training_session(model, cuda_device()));
  uint64_t planned = 0;
  for (const auto& arena : session.plan().plan.arenas) planned += arena->size;
  const auto uses = must(session.device().memory_use());
  REQUIRE(uses.front().what == "arenas");
  CHECK(static_cast<double>(uses.front().bytes) ==
        doctest::Approx(static_cast<double>(planned)).epsilon(0.01));
}

TEST_CASE("too little memory is an error of one line that names the arenas and what is free") {
  fb::PlanT plan = small_plan();
  plan.arenas[1]->size = uint64_t{1} << 46;
  const Status status = cuda_device()->load(must(runtime::parse_plan(plan_bytes(plan), "huge.plan")));
  REQUIRE_FALSE(status.ok());
  CHECK(has(status.error().message, "State arena of 70368744177664 bytes"));
  CHECK(has(status.error().message, "Params 256"));
  CHECK(has(status.error().message, "bytes are left of the GPU's"));
  CHECK(std::count(status.error().message.begin(), status.error().message.end(), '\n') == 0);
}

/// A target far outside the vocabulary makes the loss read unmapped memory. The mode is in the subcase.
TEST_CASE("device fault" * doctest::skip()) {
  Execution execution = Execution::kEager;
  SUBCASE("eager") { execution = Execution::kEager; }
  SUBCASE("graph") { execution = Execution::kWhole; }
  fb::ModelT model = example_model("char-gpt");
  SUBCASE("long graph") {
    execution = Execution::kWhole;
    model.recipe->batch_size = 2048;  // lasts longer than a mark is away from the next
  }
  runtime::Session session = must(host_batch_session(model, cuda_device(execution)));
  runtime::Device& device = session.device();
  for (int run = 0; run < 2; ++run) must(device.run(fb::ProgramKind::Evaluate));  // eager, then a graph
  must(device.wait());
  const int32_t far = std::numeric_limits<int32_t>::max();
  must(device.write(session.plan().plan.io->targets, 0, std::as_bytes(std::span(&far, 1))));
  Status status = device.run(fb::ProgramKind::Evaluate);
  if (status.ok()) status = device.wait();
  REQUIRE_FALSE(status.ok());
  std::printf("%s\n", status.error().message.c_str());
  CHECK(device.wait().error().message == status.error().message);
  CHECK(device.run(fb::ProgramKind::Evaluate).error().message == status.error().message);
}

TEST_CASE("a device fault ends the run within seconds and says how far the device came") {
  const std::pair<const char*, const char*> expected[] = {
      {"eager", "the last completed instruction is Evaluate instruction"},
      {"graph", "eager execution names the last completed instruction"},
      {"long graph", "the last completed instruction that the graph marks is Evaluate instruction"}};
  for (const auto& [mode, message] : expected) {
    const auto start = std::chrono::steady_clock::now();
    const Outcome outcome =
        run("test_cuda", {"--no-skip", "-m", "-tc=device fault", "-sc=" + std::string(mode)});
    CAPTURE(outcome.out);
    CHECK(has(outcome.out, "device fault: "));
    CHECK(has(outcome.out, message));
    CHECK(has(outcome.out, "'head.logits' (linear)") == (mode == std::string("eager")));
    CHECK(outcome.exit_code == 0);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  }
}

TEST_SUITE_END();

}  // namespace moec::test
