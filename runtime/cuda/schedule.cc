#include "runtime/cuda/schedule.h"

#include <algorithm>
#include <cstdint>

namespace moec::runtime {
namespace {

/// Calls between one that runs beside the others and the first that needs its results.
constexpr size_t kDistance = 2;

struct Range {
  uintptr_t begin, end;
};

/// The memory that a call touches.
struct Accesses {
  std::vector<Range> reads, writes;

  explicit Accesses(const KernelCall& call) {
    const auto add = [](std::vector<Range>& ranges, const TensorView& view) {
      const auto begin = reinterpret_cast<uintptr_t>(view.data);
      if (view.present() && view.bytes() > 0)
        ranges.push_back({begin, begin + static_cast<uintptr_t>(view.bytes())});
    };
    for (const TensorView& view : call.inputs) add(reads, view);
    for (const TensorView& view : call.outputs) add(writes, view);
    add(writes, call.workspace);
  }
};

bool overlap(const std::vector<Range>& a, const std::vector<Range>& b) {
  return std::ranges::any_of(a, [&](const Range& x) {
    return std::ranges::any_of(b, [&](const Range& y) { return x.begin < y.end && y.begin < x.end; });
  });
}

bool must_wait(const Accesses& later, const Accesses& earlier) {
  return overlap(earlier.writes, later.reads) || overlap(earlier.writes, later.writes) ||
         overlap(earlier.reads, later.writes);
}

/// Whether calls follow, but none of the next kDistance needs what call `i` writes.
bool needed_late(std::span<const Accesses> accesses, size_t i) {
  if (i + kDistance >= accesses.size()) return false;
  return std::ranges::none_of(accesses.subspan(i + 1, kDistance), [&](const Accesses& later) {
    return overlap(accesses[i].writes, later.reads) || overlap(accesses[i].writes, later.writes);
  });
}

}  // namespace

std::vector<ScheduledCall> schedule_calls(std::span<const SequenceCall> calls) {
  std::vector<Accesses> accesses;
  accesses.reserve(calls.size());
  for (const SequenceCall& call : calls) accesses.emplace_back(*call.call);

  std::vector<ScheduledCall> schedule(calls.size());
  for (size_t i = 1; i < calls.size(); ++i) schedule[i].beside = calls[i].small && needed_late(accesses, i);

  size_t waited[2] = {};  // per stream, the calls of the other one before this number need no wait
  for (size_t i = 0; i < calls.size(); ++i) {
    ScheduledCall& now = schedule[i];
    size_t& done = waited[now.beside];
    const bool starts = now.beside && done == 0;
    for (size_t earlier = i; earlier-- > done;) {
      if (schedule[earlier].beside == now.beside) continue;
      if (!starts && !must_wait(accesses[i], accesses[earlier])) continue;
      now.wait_for = earlier;
      schedule[earlier].awaited = true;
      done = earlier + 1;
      break;
    }
  }
  return schedule;
}

cudaError_t ScheduledStreams::before(size_t call) {
  const ScheduledCall& now = schedule_[call];
  if (now.wait_for == ScheduledCall::kNone) return cudaSuccess;
  return cudaStreamWaitEvent(streams_[now.beside], ended_[now.wait_for].get(), 0);
}

cudaError_t ScheduledStreams::after(size_t call) {
  return schedule_[call].awaited ? record(call) : cudaSuccess;
}

/// Where the second stream ends.
cudaError_t ScheduledStreams::join() {
  for (size_t call = schedule_.size(); call-- > 0;) {
    if (!schedule_[call].beside) continue;
    if (ended_[call] == nullptr) {
      const cudaError_t error = record(call);
      if (error != cudaSuccess) return error;
    }
    return cudaStreamWaitEvent(streams_[0], ended_[call].get(), 0);
  }
  return cudaSuccess;
}

cudaError_t ScheduledStreams::record(size_t call) {
  cudaEvent_t event = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error != cudaSuccess) return error;
  ended_[call].reset(event);
  return cudaEventRecord(event, streams_[schedule_[call].beside]);
}

}  // namespace moec::runtime
