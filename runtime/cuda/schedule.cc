#include "runtime/cuda/schedule.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

namespace moec::runtime {
namespace {

/// Calls between one that runs beside the others and the first that needs its results.
constexpr size_t kDistance = 2;

/// Calls that pass until one that waits for others of its kind goes with those that are there: those of a
/// layer.
constexpr size_t kPatience = 12;

struct Range {
  uintptr_t begin, end;
};

/// The memory that a call touches.
struct Accesses {
  std::vector<Range> reads, writes;

  Accesses() = default;
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

  void add_all(const Accesses& other) {
    reads.insert(reads.end(), other.reads.begin(), other.reads.end());
    writes.insert(writes.end(), other.writes.begin(), other.writes.end());
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
bool needed_late(std::span<const SequenceCall> calls, std::span<const Accesses> accesses, size_t i) {
  size_t distance = 0;
  for (size_t later = i + 1; later < calls.size() && distance < kDistance; ++later) {
    if (overlap(accesses[i].writes, accesses[later].reads) ||
        overlap(accesses[i].writes, accesses[later].writes))
      return false;
    distance += calls[later].count;
  }
  return distance >= kDistance;
}

/// Gathers calls to launches.
class Launches {
 public:
  Launches(std::span<const SequenceCall> calls, std::span<const Accesses> accesses)
      : calls_(calls), accesses_(accesses) {}

  /// Call `i`, behind what waits for others too long, or must come before it.
  void add(size_t i, Branch branch) {
    std::erase_if(waiting_, [&](const std::vector<size_t>& group) {
      const bool goes = i - group.front() >= kPatience || std::ranges::any_of(group, [&](size_t earlier) {
                          return must_wait(accesses_[i], accesses_[earlier]);
                        });
      if (goes) launch(group);
      return goes;
    });
    if (branch == kChain || calls_[i].batch == nullptr) return launch({i}, branch);
    const auto kind = std::ranges::find_if(waiting_, [&](const std::vector<size_t>& group) {
      return calls_[group.front()].batch == calls_[i].batch && calls_[group.front()].branch == branch;
    });
    if (kind == waiting_.end()) return waiting_.push_back({i});
    kind->push_back(i);
    if (kind->size() < cuda::kMostBatchedCalls) return;
    launch(*kind);
    waiting_.erase(kind);
  }

  std::vector<ScheduledLaunch> finish() {
    for (const std::vector<size_t>& group : waiting_) launch(group);
    return std::move(launches_);
  }

 private:
  void launch(std::vector<size_t> group, Branch branch) {
    launches_.push_back({.calls = std::move(group), .branch = branch});
  }
  void launch(const std::vector<size_t>& group) { launch(group, calls_[group.front()].branch); }

  std::span<const SequenceCall> calls_;
  std::span<const Accesses> accesses_;
  std::vector<std::vector<size_t>> waiting_;  // of one kind each, by the age of the first
  std::vector<ScheduledLaunch> launches_;
};

/// Finds what every launch must wait for in the other branches.
void add_waits(std::span<const Accesses> of_calls, std::vector<ScheduledLaunch>& schedule) {
  std::vector<Accesses> accesses(schedule.size());
  for (size_t i = 0; i < schedule.size(); ++i)
    for (const size_t call : schedule[i].calls) accesses[i].add_all(of_calls[call]);

  // Launches of each branch before these numbers have ended when a launch, and the next of a branch, starts.
  using Ended = std::array<size_t, kBranches>;
  std::vector<Ended> ended(schedule.size());
  Ended of_branch[kBranches] = {};
  std::vector<size_t> launches[kBranches];
  for (size_t i = 0; i < schedule.size(); ++i) {
    ScheduledLaunch& now = schedule[i];
    Ended& done = of_branch[now.branch];
    const bool starts = now.branch != kChain && done[kChain] == 0;
    for (const Branch other : {kChain, kSmallCalls, kLargeCalls}) {
      if (other == now.branch) continue;
      for (size_t k = launches[other].size(); k-- > 0 && launches[other][k] >= done[other];) {
        const size_t earlier = launches[other][k];
        if (!(starts && other == kChain) && !must_wait(accesses[i], accesses[earlier])) continue;
        now.wait_for[other] = earlier;
        schedule[earlier].awaited = true;
        for (size_t branch = 0; branch < kBranches; ++branch)
          done[branch] = std::max(done[branch], ended[earlier][branch]);
        done[other] = earlier + 1;
        break;
      }
    }
    ended[i] = done;
    launches[now.branch].push_back(i);
  }
}

}  // namespace

std::vector<ScheduledLaunch> schedule_calls(std::span<const SequenceCall> calls) {
  std::vector<Accesses> accesses;
  accesses.reserve(calls.size());
  for (const SequenceCall& call : calls) accesses.emplace_back(*call.call);

  Launches launches(calls, accesses);
  for (size_t i = 0; i < calls.size(); ++i)
    launches.add(i, i > 0 && needed_late(calls, accesses, i) ? calls[i].branch : kChain);
  std::vector<ScheduledLaunch> schedule = launches.finish();
  add_waits(accesses, schedule);
  return schedule;
}

cudaError_t ScheduledStreams::before(size_t launch) {
  const ScheduledLaunch& now = schedule_[launch];
  for (const size_t earlier : now.wait_for) {
    if (earlier == ScheduledLaunch::kNone) continue;
    const cudaError_t error = cudaStreamWaitEvent(streams_[now.branch], ended_[earlier].get(), 0);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t ScheduledStreams::after(size_t launch) {
  return schedule_[launch].awaited ? record(launch) : cudaSuccess;
}

/// Where the branches beside the chain end.
cudaError_t ScheduledStreams::join() {
  for (const Branch branch : {kSmallCalls, kLargeCalls}) {
    const auto last = std::find_if(schedule_.rbegin(), schedule_.rend(),
                                   [&](const ScheduledLaunch& launch) { return launch.branch == branch; });
    if (last == schedule_.rend()) continue;
    const auto launch = static_cast<size_t>(schedule_.rend() - last - 1);
    cudaError_t error = ended_[launch] == nullptr ? record(launch) : cudaSuccess;
    if (error == cudaSuccess) error = cudaStreamWaitEvent(streams_[kChain], ended_[launch].get(), 0);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t ScheduledStreams::record(size_t launch) {
  cudaEvent_t event = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error != cudaSuccess) return error;
  ended_[launch].reset(event);
  return cudaEventRecord(event, streams_[schedule_[launch].branch]);
}

}  // namespace moec::runtime
