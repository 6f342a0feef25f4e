// The choice of a device, and two devices side by side.
#include <doctest/doctest.h>

#include <algorithm>

#include "runtime/cuda/cuda_device.h"
#include "tests/tools/process.h"

namespace moec::test {
namespace {

std::string small_plan_file(const Scratch& scratch) {
  const std::string plan = scratch.path("tiny.plan");
  const Outcome outcome =
      run("moec", {example("moe-tiny"), "-o", plan, "--batch-size", "1", "--seq-len", "32"});
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  return plan;
}

}  // namespace

TEST_CASE("a device in lockstep with itself agrees on every instruction") {
  const Scratch scratch;
  const Outcome outcome = run("moec", {"diff", small_plan_file(scratch), "--device-b", "cpu", "--all"});
  CHECK_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(outcome.out.find("instructions agree on cpu and cpu") != std::string::npos);
  CHECK(outcome.out.find("grouped_linear_bwd_weight") != std::string::npos);
  CHECK(run("moec", {"diff", small_plan_file(scratch), "--device-b", "cpu", "--steps", "0"}).exit_code == 2);
}

TEST_CASE("without a usable GPU, the CUDA device is refused in one line") {
  const Status available = runtime::cuda_available();
  if (available.ok()) return;
  const Scratch scratch;
  const Outcome outcome = run("moec", {"diff", small_plan_file(scratch)});
  CHECK(outcome.exit_code == 2);
  CHECK(outcome.err.find(available.error().message) != std::string::npos);
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
}

}  // namespace moec::test
