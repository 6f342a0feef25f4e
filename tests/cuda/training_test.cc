// Training on the GPU: the same bits in every mode and process, the CPU's losses, and steps that must not
// count.
#include "tests/support/training.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "kernels/beside.h"
#include "tests/cuda/gpu.h"
#include "tests/tools/process.h"

namespace moec::test {
namespace {

using runtime::Execution;
using runtime::Session;
using runtime::StepMetrics;

fb::ModelT small_model(const std::string& name, fb::DType dtype) {
  fb::ModelT model = example_model(name);
  model.recipe->dtype = dtype;
  model.recipe->batch_size = 4;
  model.recipe->seq_len = 64;
  model.recipe->grad_accum = 2;
  return model;
}

const char* const kModels[] = {"moe-tiny", "char-gpt"};
constexpr fb::DType kTypes[] = {fb::DType::F32, fb::DType::BF16, fb::DType::F16};

template <class T>
void write_state(Session& session, size_t offset, T value) {
  must(session.device().write(session.plan().plan.io->train_state, offset,
                              std::as_bytes(std::span(&value, 1))));
}

std::array<double, 5> numbers(const StepMetrics& m) {
  return {m.loss, m.aux_loss, m.grad_norm, m.lr, static_cast<double>(m.skipped_steps)};
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("eager, segmented and whole execution give the same bits over 50 steps") {
  for (const char* name : kModels)
    for (const fb::DType dtype : kTypes) {
      CAPTURE(name);
      CAPTURE(dtype);
      const fb::ModelT model = small_model(name, dtype);
      Session eager = must(training_session(model, cuda_device(Execution::kEager)));
      Session segmented = must(training_session(model, cuda_device(Execution::kSegmented)));
      Session whole = must(training_session(model, cuda_device(Execution::kWhole)));
      for (int64_t step = 0; step < 50; ++step) {
        CAPTURE(step);
        for (Session* session : {&eager, &segmented, &whole}) must(session->train_step());
        const auto metrics = numbers(must(eager.read_metrics(step)));
        CHECK(std::isfinite(metrics[0]));
        CHECK(numbers(must(segmented.read_metrics(step))) == metrics);
        CHECK(numbers(must(whole.read_metrics(step))) == metrics);
      }
      const uint64_t hash = must(eager.state_hash());
      CHECK(must(segmented.state_hash()) == hash);
      CHECK(must(whole.state_hash()) == hash);
      const double loss = must(eager.evaluate(3));
      CHECK(must(segmented.evaluate(3)) == loss);
      CHECK(must(whole.evaluate(3)) == loss);
    }
}

TEST_CASE("gradients of experts beside other calls have the bits of eager execution") {
  fb::ModelT model = example_model("moe-6.9b");
  model.blocks.at(1)->repeat = 2;
  model.recipe->batch_size = 4;
  model.recipe->seq_len = 1024;
  model.recipe->memory_budget = uint64_t{64} << 30;  // and so room for them to lag
  Session eager = must(training_session(model, cuda_device(Execution::kEager)));
  Session whole = must(training_session(model, cuda_device(Execution::kWhole)));
  int large = 0;
  for (const auto& program : whole.plan().plan.programs)
    for (const auto& instruction : program->instructions)
      large += is_large_call_beside(instruction->kernel, static_cast<double>(instruction->flops),
                                    static_cast<double>(instruction->bytes));
  CHECK(large == 4);
  for (int64_t step = 0; step < 10; ++step) {
    for (Session* session : {&eager, &whole}) must(session->train_step());
    CHECK(numbers(must(whole.read_metrics(step))) == numbers(must(eager.read_metrics(step))));
  }
  CHECK(must(whole.state_hash()) == must(eager.state_hash()));
  CHECK(must(whole.read_metrics(9)).skipped_steps == 0);
}

TEST_CASE("state after 200 steps" * doctest::skip()) {
  for (const char* name : kModels) {
    Session session = must(training_session(small_model(name, fb::DType::BF16), cuda_device()));
    for (int step = 0; step < 200; ++step) must(session.train_step());
    std::printf("%s %016lx\n", name, must(session.state_hash()));
  }
}

TEST_CASE("three processes give the same weights and moments after 200 steps") {
  std::set<std::string> states;
  for (int i = 0; i < 3; ++i) {
    const Outcome outcome = run("test_cuda", {"--no-skip", "-m", "-tc=state after 200 steps"});
    REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.out);
    states.insert(outcome.out.substr(0, outcome.out.find("[doctest]", outcome.out.find("char-gpt"))));
  }
  CHECK(states.begin()->find("moe-tiny") != std::string::npos);
  CHECK(states.size() == 1);
}

TEST_CASE("a step with an infinite gradient leaves weights and moments as they were, and the run goes on") {
  for (const Execution execution : {Execution::kEager, Execution::kSegmented, Execution::kWhole}) {
    Session session =
        must(training_session(small_model("moe-tiny", fb::DType::BF16), cuda_device(execution)));
    for (int step = 0; step < 3; ++step) must(session.train_step());
    const uint64_t before = must(session.state_hash());
    // Every gradient is multiplied with the loss scale.
    write_state(session, offsetof(TrainState, loss_scale), std::numeric_limits<double>::infinity());
    must(session.train_step());
    write_state(session, offsetof(TrainState, loss_scale), 1.0);
    CHECK(must(session.state_hash()) == before);
    CHECK(must(session.read_metrics(2)).skipped_steps == 0);
    CHECK(must(session.read_metrics(3)).skipped_steps == 1);
    must(session.train_step());
    CHECK(must(session.state_hash()) != before);
    CHECK(must(session.read_metrics(4)).skipped_steps == 1);
    CHECK(std::isfinite(must(session.read_metrics(4)).grad_norm));
  }
}

TEST_CASE("data longer than the window passes through it behind the steps, with the same bits") {
  constexpr int64_t kWindow = 8 * 64 + 1;  // a step of 4 x 64 x 2 tokens: every step has another chunk
  const fb::ModelT model = small_model("moe-tiny", fb::DType::F32);
  const CompileOptions options{.window_tokens = kWindow};
  Session cpu = must(training_session(model, runtime::make_cpu_device(), options));
  Session waiting = must(training_session(model, cuda_device(Execution::kEager), options));
  Session hurrying = must(training_session(model, cuda_device(), options));
  std::vector<runtime::LateMetrics> late;
  for (int step = 0; step < 200; ++step) {
    must(hurrying.train_step());
    late.push_back(must(hurrying.read_metrics_later()));
  }
  for (int64_t step = 0; step < 200; ++step) {
    must(waiting.train_step());
    must(waiting.device().wait());
    const double loss = must(waiting.read_metrics(step)).loss;
    runtime::LateMetrics& same = late[static_cast<size_t>(step)];
    while (!must(same.ready())) {
    }
    CHECK(must(same.metrics()).loss == loss);
    if (step > 0) CHECK(must(same.seconds()) > 0);
    if (step >= 20) continue;
    must(cpu.train_step());
    CHECK(loss == doctest::Approx(must(cpu.read_metrics(step)).loss).epsilon(0.01));
  }
  CHECK(must(waiting.state_hash()) == must(hurrying.state_hash()));
}

TEST_CASE("training reaches the CPU's losses") {
  fb::DType dtype = fb::DType::F32, moments = fb::DType::F32;
  double tolerance = 0.01;
  SUBCASE("f32") {}
  SUBCASE("bf16 throughout") {
    dtype = moments = fb::DType::BF16;
    tolerance = 0.03;
  }
  SUBCASE("f16 with bf16 moments") {
    dtype = fb::DType::F16;
    moments = fb::DType::BF16;
    tolerance = 0.03;
  }
  for (const char* name : kModels) {
    CAPTURE(name);
    fb::ModelT model = small_model(name, dtype);
    model.recipe->grad_dtype = dtype;
    model.recipe->moment_dtype = moments;
    Session cpu = must(training_session(model, runtime::make_cpu_device()));
    Session gpu = must(training_session(model, cuda_device()));
    for (int64_t step = 0; step < 100; ++step) {
      for (Session* session : {&cpu, &gpu}) must(session->train_step());
      const double expected = must(cpu.read_metrics(step)).loss;
      CHECK(must(gpu.read_metrics(step)).loss == doctest::Approx(expected).epsilon(tolerance));
    }
    CHECK(must(gpu.evaluate(0)) == doctest::Approx(must(cpu.evaluate(0))).epsilon(tolerance));
  }
}

TEST_SUITE_END();

}  // namespace moec::test
