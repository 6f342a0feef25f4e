// Which calls run beside the others: never against what they read and write.
#include "runtime/cuda/schedule.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace moec::test {
namespace {

using runtime::Branch;
using runtime::kBranches;
using runtime::kChain;
using runtime::kLargeCalls;
using runtime::kSmallCalls;
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

/// Call number i may run in branch branches[i % size], and with others if `batches` & 1 << i % 8.
std::vector<ScheduledLaunch> schedule(const std::vector<KernelCall>& calls,
                                      const std::vector<Branch>& branches, unsigned batches = 0) {
  std::vector<SequenceCall> sequence;
  for (size_t i = 0; i < calls.size(); ++i)
    sequence.push_back({&calls[i], branches[i % branches.size()], batches >> i % 8 & 1 ? batched : nullptr});
  return schedule_calls(sequence);
}

/// before[j][i]: launch i has ended before launch j starts, by the order in branches and the waits between
/// them.
std::vector<std::vector<bool>> order(const std::vector<ScheduledLaunch>& schedule) {
  std::vector<std::vector<bool>> before(schedule.size(), std::vector<bool>(schedule.size()));
  auto last = ScheduledLaunch().wait_for;
  for (size_t j = 0; j < schedule.size(); ++j) {
    std::vector<size_t> ended = {last[schedule[j].branch]};
    ended.insert(ended.end(), schedule[j].wait_for.begin(), schedule[j].wait_for.end());
    for (const size_t i : ended) {
      if (i == ScheduledLaunch::kNone) continue;
      before[j][i] = true;
      for (size_t k = 0; k < i; ++k) before[j][k] = before[j][k] || before[i][k];
    }
    last[schedule[j].branch] = j;
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
  for (const Branch branch : {kSmallCalls, kLargeCalls}) {
    const std::vector<ScheduledLaunch> lagging = schedule(calls, {branch});
    REQUIRE(lagging.size() == calls.size());
    for (size_t i = 0; i + 10 < calls.size(); ++i) CHECK(lagging[i].branch == (i % 2 == 1 ? branch : kChain));
  }
  for (const ScheduledLaunch& launch : schedule(calls, {kChain})) {
    CHECK(launch.branch == kChain);
    CHECK(launch.wait_for == ScheduledLaunch().wait_for);
  }
}

TEST_CASE("gradients of weights that can be computed together are, before long") {
  const std::vector<KernelCall> calls = backward_pass(20);
  const std::vector<ScheduledLaunch> launches = schedule(calls, {kSmallCalls}, 0xff);
  CHECK(launches.size() < calls.size() * 3 / 4);
  for (const ScheduledLaunch& launch : launches) {
    CHECK(launch.calls.size() <= cuda::kMostBatchedCalls);
    CHECK((launch.branch == kSmallCalls || launch.calls.size() == 1));
  }
}

TEST_CASE("calls that touch the same memory keep their order") {
  std::mt19937 random(7);
  const auto number = [&](uintptr_t below) { return static_cast<uintptr_t>(random() % below); };
  size_t beside[kBranches] = {}, together = 0;
  for (int round = 0; round < 300; ++round) {
    const uintptr_t arena = round % 2 == 0 ? 300 : 3000;
    std::vector<KernelCall> calls(40);
    for (KernelCall& call : calls)
      for (std::vector<TensorView>* operands : {&call.inputs, &call.outputs})
        for (uintptr_t i = 0; i <= number(2); ++i) {
          const uintptr_t begin = number(arena);
          operands->push_back(range(begin, begin + 1 + number(20)));
        }
    std::vector<Branch> branches;
    for (size_t i = 0; i < calls.size(); ++i) branches.push_back(static_cast<Branch>(number(kBranches)));
    const std::vector<ScheduledLaunch> launches =
        schedule(calls, branches, static_cast<unsigned>(number(256)));
    const auto before = order(launches);
    const std::vector<size_t> launch = launch_of(launches, calls.size());
    CHECK(launch[0] == 0);
    CHECK(launches[0].branch == kChain);
    for (size_t j = 0; j < launches.size(); ++j) {
      ++beside[launches[j].branch];
      together += launches[j].calls.size() > 1;
      for (const Branch other : {kChain, kSmallCalls, kLargeCalls}) {
        const size_t earlier = launches[j].wait_for[other];
        if (earlier == ScheduledLaunch::kNone) continue;
        CHECK(earlier < j);
        CHECK(launches[earlier].awaited);
        CHECK(launches[earlier].branch == other);
        CHECK(other != launches[j].branch);
      }
    }
    for (size_t j = 0; j < calls.size(); ++j)
      for (size_t i = 0; i < j; ++i)
        if (conflict(calls[i], calls[j])) {
          REQUIRE(launch[i] != launch[j]);
          CHECK(before[launch[j]][launch[i]]);
        }
  }
  for (const size_t launches : beside) CHECK(launches > 1000);
  CHECK(together > 100);
}

}  // namespace moec::test
