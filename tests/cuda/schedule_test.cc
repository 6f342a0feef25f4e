// Which calls run beside the others: never against what they read and write.
#include "runtime/cuda/schedule.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace moec::test {
namespace {

using runtime::schedule_calls;
using runtime::ScheduledLaunch;
using runtime::SequenceCall;

/// Bytes [begin, end) of an imagined arena.
TensorView range(uintptr_t begin, uintptr_t end) {
  TensorView view;
  view.data = reinterpret_cast<void*>(uintptr_t{1} << 20 | begin);
  view.dtype = fb::DType::U8;
  view.rank = 1;
  view.shape[0] = static_cast<int64_t>(end - begin);
  return view;
}

bool overlap(const std::vector<TensorView>& a, const std::vector<TensorView>& b) {
  for (const TensorView& x : a)
    for (const TensorView& y : b)
      if (x.as<char>() < y.as<char>() + y.bytes() && y.as<char>() < x.as<char>() + x.bytes()) return true;
  return false;
}

bool conflict(const KernelCall& a, const KernelCall& b) {
  return overlap(a.outputs, b.inputs) || overlap(a.inputs, b.outputs) || overlap(a.outputs, b.outputs);
}

cudaError_t batched(std::span<const KernelCall* const>, const cuda::CudaContext&) { return cudaSuccess; }

/// Every call number i with `batches` & 1 << i % 8 can be computed with others.
std::vector<ScheduledLaunch> schedule(const std::vector<KernelCall>& calls, bool may_lag = true,
                                      unsigned batches = 0) {
  std::vector<SequenceCall> sequence;
  for (size_t i = 0; i < calls.size(); ++i)
    sequence.push_back({&calls[i], may_lag, batches >> i % 8 & 1 ? batched : nullptr});
  return schedule_calls(sequence);
}

/// before[j][i]: launch i has ended before launch j starts, by the order of streams and the waits between
/// them.
std::vector<std::vector<bool>> order(const std::vector<ScheduledLaunch>& schedule) {
  std::vector<std::vector<bool>> before(schedule.size(), std::vector<bool>(schedule.size()));
  size_t last[2] = {ScheduledLaunch::kNone, ScheduledLaunch::kNone};
  for (size_t j = 0; j < schedule.size(); ++j) {
    for (const size_t i : {last[schedule[j].beside], schedule[j].wait_for}) {
      if (i == ScheduledLaunch::kNone) continue;
      before[j][i] = true;
      for (size_t k = 0; k < i; ++k) before[j][k] = before[j][k] || before[i][k];
    }
    last[schedule[j].beside] = j;
  }
  return before;
}

/// The launch of every call; each has one.
std::vector<size_t> launch_of(const std::vector<ScheduledLaunch>& schedule, size_t calls) {
  std::vector<size_t> launches(calls, ScheduledLaunch::kNone);
  for (size_t i = 0; i < schedule.size(); ++i)
    for (const size_t call : schedule[i].calls) {
      CHECK(launches.at(call) == ScheduledLaunch::kNone);
      launches[call] = i;
    }
  CHECK(std::ranges::count(launches, ScheduledLaunch::kNone) == 0);
  return launches;
}

/// A chain of calls, each of which reads what the one before wrote, with gradients of weights between them.
std::vector<KernelCall> backward_pass(uintptr_t layers) {
  std::vector<KernelCall> calls;
  for (uintptr_t layer = 0; layer < layers; ++layer) {
    const TensorView dy = range(100 * layer, 100 * layer + 100),
                     dx = range(100 * layer + 100, 100 * layer + 200);
    calls.push_back({.inputs = {dy}, .outputs = {dx}, .workspace = {}});
    calls.push_back({.inputs = {dy}, .outputs = {range(50'000 + layer, 50'001 + layer)}, .workspace = {}});
  }
  return calls;
}

}  // namespace

TEST_CASE("gradients of weights run beside the chain, if they may lag") {
  const std::vector<KernelCall> calls = backward_pass(20);
  const std::vector<ScheduledLaunch> lagging = schedule(calls);
  REQUIRE(lagging.size() == calls.size());
  for (size_t i = 0; i + 10 < calls.size(); ++i) CHECK(lagging[i].beside == (i % 2 == 1));
  for (const ScheduledLaunch& launch : schedule(calls, false)) {
    CHECK(!launch.beside);
    CHECK(launch.wait_for == ScheduledLaunch::kNone);
  }
}

TEST_CASE("gradients of weights that can be computed together are, before long") {
  const std::vector<KernelCall> calls = backward_pass(20);
  const std::vector<ScheduledLaunch> launches = schedule(calls, true, 0xff);
  CHECK(launches.size() < calls.size() * 3 / 4);
  for (const ScheduledLaunch& launch : launches) {
    CHECK(launch.calls.size() <= cuda::kMostBatchedCalls);
    CHECK((launch.beside || launch.calls.size() == 1));
  }
}

TEST_CASE("calls that touch the same memory keep their order") {
  std::mt19937 random(7);
  const auto number = [&](uintptr_t below) { return static_cast<uintptr_t>(random() % below); };
  size_t beside = 0, together = 0;
  for (int round = 0; round < 300; ++round) {
    const uintptr_t arena = round % 2 == 0 ? 300 : 3000;
    std::vector<KernelCall> calls(40);
    for (KernelCall& call : calls)
      for (std::vector<TensorView>* operands : {&call.inputs, &call.outputs})
        for (uintptr_t i = 0; i <= number(2); ++i) {
          const uintptr_t begin = number(arena);
          operands->push_back(range(begin, begin + 1 + number(20)));
        }
    const std::vector<ScheduledLaunch> launches = schedule(calls, true, static_cast<unsigned>(number(256)));
    const auto before = order(launches);
    const std::vector<size_t> launch = launch_of(launches, calls.size());
    CHECK(launch[0] == 0);
    CHECK(!launches[0].beside);
    for (size_t j = 0; j < launches.size(); ++j) {
      beside += launches[j].beside;
      together += launches[j].calls.size() > 1;
      if (launches[j].wait_for == ScheduledLaunch::kNone) continue;
      CHECK(launches[j].wait_for < j);
      CHECK(launches[launches[j].wait_for].awaited);
      CHECK(launches[launches[j].wait_for].beside != launches[j].beside);
    }
    for (size_t j = 0; j < calls.size(); ++j)
      for (size_t i = 0; i < j; ++i)
        if (conflict(calls[i], calls[j])) {
          REQUIRE(launch[i] != launch[j]);
          CHECK(before[launch[j]][launch[i]]);
        }
  }
  CHECK(beside > 1000);
  CHECK(together > 100);
}

}  // namespace moec::test
