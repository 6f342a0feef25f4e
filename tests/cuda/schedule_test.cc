// Which calls run beside the others: never against what they read and write.
#include "runtime/cuda/schedule.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

namespace moec::test {
namespace {

using runtime::schedule_calls;
using runtime::ScheduledCall;
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

std::vector<ScheduledCall> schedule(const std::vector<KernelCall>& calls, bool small = true) {
  std::vector<SequenceCall> sequence;
  for (const KernelCall& call : calls) sequence.push_back({&call, small});
  return schedule_calls(sequence);
}

/// before[j][i]: call i has ended before call j starts, by the order of streams and the waits between them.
std::vector<std::vector<bool>> order(const std::vector<ScheduledCall>& schedule) {
  std::vector<std::vector<bool>> before(schedule.size(), std::vector<bool>(schedule.size()));
  size_t last[2] = {ScheduledCall::kNone, ScheduledCall::kNone};
  for (size_t j = 0; j < schedule.size(); ++j) {
    for (const size_t i : {last[schedule[j].beside], schedule[j].wait_for}) {
      if (i == ScheduledCall::kNone) continue;
      before[j][i] = true;
      for (size_t k = 0; k < i; ++k) before[j][k] = before[j][k] || before[i][k];
    }
    last[schedule[j].beside] = j;
  }
  return before;
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

TEST_SUITE_BEGIN("gpu");

TEST_CASE("gradients of weights run beside the chain, if they are small") {
  const std::vector<KernelCall> calls = backward_pass(20);
  const std::vector<ScheduledCall> small = schedule(calls);
  for (size_t i = 0; i + 10 < calls.size(); ++i) CHECK(small[i].beside == (i % 2 == 1));
  for (const ScheduledCall& call : schedule(calls, false)) {
    CHECK(!call.beside);
    CHECK(call.wait_for == ScheduledCall::kNone);
  }
}

TEST_CASE("calls that touch the same memory keep their order") {
  std::mt19937 random(7);
  const auto number = [&](uintptr_t below) { return static_cast<uintptr_t>(random() % below); };
  size_t beside = 0;
  for (int round = 0; round < 300; ++round) {
    const uintptr_t arena = round % 2 == 0 ? 300 : 3000;
    std::vector<KernelCall> calls(40);
    for (KernelCall& call : calls)
      for (std::vector<TensorView>* operands : {&call.inputs, &call.outputs})
        for (uintptr_t i = 0; i <= number(2); ++i) {
          const uintptr_t begin = number(arena);
          operands->push_back(range(begin, begin + 1 + number(20)));
        }
    const std::vector<ScheduledCall> places = schedule(calls);
    const auto before = order(places);
    CHECK(!places[0].beside);
    for (size_t j = 0; j < calls.size(); ++j) {
      beside += places[j].beside;
      if (places[j].wait_for != ScheduledCall::kNone) {
        CHECK(places[j].wait_for < j);
        CHECK(places[places[j].wait_for].awaited);
        CHECK(places[places[j].wait_for].beside != places[j].beside);
      }
      for (size_t i = 0; i < j; ++i)
        if (conflict(calls[i], calls[j])) CHECK(before[j][i]);
    }
  }
  CHECK(beside > 1000);
}

TEST_SUITE_END();

}  // namespace moec::test
