#include "runtime/lockstep.h"

#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "small_plan.h"

namespace moec::runtime {
namespace {

/// The CPU's kernels, one of which adds something to an element of its first output.
class FaultyDevice final : public Device {
 public:
  FaultyDevice(std::string kernel, size_t element, float added)
      : kernel_(std::move(kernel)), element_(element), added_(added) {}

  std::string_view name() const override { return "faulty"; }
  bool has_kernel(std::string_view key) const override { return cpu::find_kernel(key) != nullptr; }
  Status wait() override { return {}; }

 private:
  Result<void*> allocate(uint64_t size, bool) override { return arenas_.emplace_back(size).data(); }
  Status fill(void*, uint8_t, uint64_t) override { return {}; }
  Status copy_in(void* to, std::span<const std::byte> from) override {
    std::memcpy(to, from.data(), from.size());
    return {};
  }
  Status copy_out(std::span<std::byte> to, const void* from) override {
    std::memcpy(to.data(), from, to.size());
    return {};
  }
  Status prepare() override { return {}; }
  Result<double> execute_one(size_t program, size_t instruction) override {
    const std::string& key = programs()[program].plan->instructions[instruction]->kernel;
    const KernelCall& call = programs()[program].calls[instruction];
    cpu::find_kernel(key)(call);
    if (key == kernel_) call.outputs[0].as<float>()[element_] += added_;
    return 0.0;
  }

  std::string kernel_;
  size_t element_;
  float added_;
  std::vector<std::vector<std::byte>> arenas_;
};

std::vector<Comparison> compare_with_cpu(FaultyDevice faulty) {
  const auto plan = parse_plan(test::plan_bytes(test::small_plan()), "small.plan");
  REQUIRE(plan.ok());
  const auto cpu = make_cpu_device();
  REQUIRE(cpu->load(*plan).ok());
  REQUIRE(faulty.load(*plan).ok());
  std::vector<Comparison> comparisons;
  const Status status =
      run_lockstep(*cpu, faulty, fb::ProgramKind::Evaluate, [&](const Comparison& comparison) {
        comparisons.push_back(comparison);
        return Status();
      });
  REQUIRE(status.ok());
  REQUIRE(comparisons.size() == 3);
  return comparisons;
}

TEST_CASE("devices that compute the same agree on every instruction") {
  for (const Comparison& comparison : compare_with_cpu({"none", 0, 0})) {
    CHECK(comparison.agrees());
    CHECK(comparison.absolute == 0);
  }
}

TEST_CASE("lockstep names the one instruction that differs, and where") {
  const auto comparisons = compare_with_cpu({"add", 2, 0.5f});
  CHECK(comparisons[0].agrees());
  CHECK(comparisons[2].agrees());  // it got the right operand
  const Comparison& add = comparisons[1];
  CHECK_FALSE(add.agrees());
  CHECK(add.instruction->label == "small.add");
  CHECK(add.index == 1);
  CHECK(add.output == "sum");
  CHECK(add.element == 2);
  CHECK(add.a == 3);
  CHECK(add.b == 3.5);
  CHECK(add.absolute == 0.5);
  CHECK(add.relative == doctest::Approx(0.5 / 3));
}

TEST_CASE("a difference within rounding agrees, a NaN does not") {
  CHECK(compare_with_cpu({"add", 0, 1e-6f})[1].agrees());
  CHECK_FALSE(compare_with_cpu({"add", 3, std::numeric_limits<float>::quiet_NaN()})[1].agrees());
}

}  // namespace
}  // namespace moec::runtime
