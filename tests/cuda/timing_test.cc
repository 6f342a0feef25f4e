// Times of whole steps, printed; run by tools/gpu_check.sh.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "tests/cuda/gpu.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// Microseconds from one step to the next, the median over rounds of steps that are submitted without
/// waiting.
double step_time(runtime::Session& session) {
  constexpr int kRounds = 9, kSteps = 200;
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    must(session.device().wait());
    const auto start = Clock::now();
    for (int step = 0; step < kSteps; ++step) must(session.train_step());
    must(session.device().wait());
    rounds.push_back(microseconds_since(start) / kSteps);
  }
  std::nth_element(rounds.begin(), rounds.begin() + kRounds / 2, rounds.end());
  return rounds[kRounds / 2];
}

/// Microseconds that the host takes to submit a step.
double submit_time(runtime::Session& session) {
  constexpr int kSteps = 20;  // far fewer than the device's queue holds
  must(session.device().wait());
  const auto start = Clock::now();
  for (int step = 0; step < kSteps; ++step) must(session.train_step());
  const double time = microseconds_since(start) / kSteps;
  must(session.device().wait());
  return time;
}

const char* name_of(runtime::Execution execution) {
  switch (execution) {
    case runtime::Execution::kEager:
      return "eager";
    case runtime::Execution::kSegmented:
      return "segmented";
    case runtime::Execution::kWhole:
      return "whole";
  }
  return "";
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("step times" * doctest::skip()) {
  for (const char* name : {"char-gpt", "moe-tiny"})
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16})
      for (const auto execution :
           {runtime::Execution::kEager, runtime::Execution::kSegmented, runtime::Execution::kWhole}) {
        fb::ModelT model = example_model(name);
        model.recipe->dtype = dtype;
        runtime::Session session = must(training_session(model, cuda_device(execution)));
        for (int step = 0; step < 5; ++step) must(session.train_step());
        std::printf("%s %s %s: %.1f us/step, host %.1f us\n", name, fb::EnumNameDType(dtype),
                    name_of(execution), step_time(session), submit_time(session));
      }
}

TEST_SUITE_END();

}  // namespace moec::test
