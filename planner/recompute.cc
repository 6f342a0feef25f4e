#include "planner/recompute.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "planner/lifetimes.h"

namespace moec::planner {
namespace {

constexpr int kNone = -1;

/// Who makes what.
struct Makers {
  explicit Makers(const RecomputeProblem& problem)
      : writer(problem.memory.sizes.size(), kNone),
        remake(problem.memory.steps.size(), kNone),
        remake_of_written(remake) {
    for (size_t s = 0; s < problem.memory.steps.size(); ++s)
      for (const int value : problem.memory.steps[s].writes) writer[value] = static_cast<int>(s);
    for (size_t r = 0; r < problem.remakes.size(); ++r) {
      remake[problem.remakes[r].step] = static_cast<int>(r);
      remake_of_written[writer[problem.remakes[r].value]] = static_cast<int>(r);
    }
  }

  std::vector<int> writer;             // per value: the step that writes it
  std::vector<int> remake;             // per step: the remake that it can do
  std::vector<int> remake_of_written;  // per step: the remake of a value that it writes
};

/// Writes the steps in order and puts repeats before the steps that need them.
class Repeater {
 public:
  /// Writes over `result`, whose memory is used again.
  Repeater(const RecomputeProblem& problem, const Makers& makers, const Choice& choice,
           RepeatingProgram& result)
      : problem_(problem),
        makers_(makers),
        choice_(choice),
        now_(problem.memory.sizes.size()),
        result_(result) {
    std::iota(now_.begin(), now_.end(), 0);
    result_.problem.sizes = problem.memory.sizes;
    result_.problem.live_out = problem.memory.live_out;
    result_.step.clear();
    result_.repeat.clear();
    result_.remake.clear();
    result_.extra_seconds = 0;
  }

  void run() {
    for (int s = 0; s < static_cast<int>(problem_.memory.steps.size()); ++s) {
      if (s >= problem_.turn) fetch_inputs(s);
      append(s, false);
    }
    result_.problem.steps.resize(result_.step.size());
  }

 private:
  /// Repeats what step `s` reads and the backward pass has not got, and what that reads, depth first.
  void fetch_inputs(int s) {
    for (const int value : problem_.memory.steps[s].reads) {
      const int maker = makers_.writer[value];
      const bool gone = maker != kNone && choice_.dropped[maker] && now_[value] == value;
      if (!gone) continue;
      fetch_inputs(maker);
      append(maker, true);
    }
  }

  void append(int s, bool repeat) {
    const size_t at = result_.step.size();
    std::vector<Step>& steps = result_.problem.steps;
    if (at == steps.size()) steps.emplace_back();
    Step& added = steps[at];
    const int r = makers_.remake[s];
    const bool remake = r != kNone && choice_.remade[r];
    added = remake ? problem_.remakes[r].instead : problem_.memory.steps[s];
    for (int& value : added.reads) value = now_[value];
    for (Share& share : added.shares) share.input = now_[share.input];
    if (repeat) {
      for (int& value : added.writes) {
        const int again = static_cast<int>(result_.problem.sizes.size());
        result_.problem.sizes.push_back(problem_.memory.sizes[value]);
        value = now_[value] = again;
      }
      for (Share& share : added.shares) share.output = now_[share.output];
      result_.extra_seconds += problem_.seconds[s];
    }
    if (remake) {
      now_[problem_.remakes[r].value] = problem_.remakes[r].again;
      result_.extra_seconds += problem_.remakes[r].seconds;
    }
    result_.step.push_back(s);
    result_.repeat.push_back(repeat);
    result_.remake.push_back(remake);
  }

  const RecomputeProblem& problem_;
  const Makers& makers_;
  const Choice& choice_;
  std::vector<int> now_;  // per original value: the value that is read in its place
  RepeatingProgram& result_;
};

/// Reads of an original value before the turn and after it.
struct Reads {
  int last_early = kNone;
  int first_late = kNone;
};

/// Where the value of a remake is made for the last time before the step that can remake it, and that step.
struct Window {
  int made = kNone, step = kNone;
};

/// What one choice comes to.
struct Outcome {
  uint64_t peak = 0;
  size_t peak_steps = 0;  // steps at which the peak is reached
  int peak_step = 0;      // the first of them
  double extra_seconds = 0;
  std::vector<Reads> reads;     // per original value
  std::vector<Window> windows;  // per remake

  bool better_than(const Outcome& other) const {
    return peak != other.peak ? peak < other.peak : peak_steps < other.peak_steps;
  }
};

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

void find_peak(const Problem& problem, Outcome& outcome) {
  const Lifetimes lifetimes = derive_lifetimes(problem);
  std::vector<uint64_t> change(problem.steps.size() + 1, 0);  // modulo 2^64, as is the sum
  for (const auto& [size, first, last] : lifetimes.buffers) {
    change[first] += aligned(size);
    change[last + size_t{1}] -= aligned(size);
  }
  uint64_t live = 0;
  for (size_t s = 0; s + 1 < change.size(); ++s) {
    live += change[s];
    if (live > outcome.peak) {
      outcome.peak = live;
      outcome.peak_step = static_cast<int>(s);
      outcome.peak_steps = 0;
    }
    outcome.peak_steps += live == outcome.peak;
  }
}

/// Steps to drop together, or a remake, so that one value need not be kept.
struct Move {
  std::vector<int> steps;
  int remake = kNone;
  double bytes_per_second = 0;
};
constexpr double kLeastSeconds = 1e-9;  // what has no price is better than anything else

class Search {
 public:
  explicit Search(const RecomputeProblem& problem)
      : problem_(problem),
        makers_(problem),
        choice_{std::vector<bool>(problem.memory.steps.size(), false),
                std::vector<bool>(problem.remakes.size(), false)} {}

  std::vector<Alternative> run() {
    Outcome now = outcome();
    record(now);
    std::set<int> rejected;  // keys of moves that did not help since the last one that did
    for (int tries = 0; tries < kMostTries && static_cast<int>(rejected.size()) < kMostRejected; ++tries) {
      const std::optional<Move> move = best_move(now, rejected);
      if (!move) break;
      Choice before = std::exchange(choice_, with(*move));
      Outcome next = outcome();
      if (next.better_than(now)) {
        now = std::move(next);
        keep_repeated(*move, now);
        record(now);
        rejected.clear();
      } else {
        choice_ = std::move(before);
        rejected.insert(key(*move));
      }
    }
    return fastest_first();
  }

 private:
  static constexpr int kMostTries = 4000, kMostRejected = 100;

  Outcome outcome() {
    Repeater(problem_, makers_, choice_, program_).run();
    Outcome outcome{
        .extra_seconds = program_.extra_seconds, .reads = collect_reads(), .windows = collect_windows()};
    find_peak(program_.problem, outcome);
    return outcome;
  }

  void record(const Outcome& outcome) { found_.push_back({choice_, outcome.peak, outcome.extra_seconds}); }

  std::vector<Reads> collect_reads() const {
    std::vector<Reads> reads(problem_.memory.sizes.size());
    for (int s = 0; s < static_cast<int>(program_.problem.steps.size()); ++s)
      for (const int value : program_.problem.steps[s].reads) {
        if (value >= static_cast<int>(reads.size())) continue;
        Reads& r = reads[value];
        if (s < problem_.turn)
          r.last_early = s;
        else if (r.first_late == kNone)
          r.first_late = s;
      }
    return reads;
  }

  std::vector<Window> collect_windows() const {
    std::vector<Window> windows(problem_.remakes.size());
    for (int s = 0; s < static_cast<int>(program_.step.size()); ++s) {
      const int step = program_.step[s];
      if (const int r = makers_.remake[step]; r != kNone) windows[r].step = s;
      if (const int r = makers_.remake_of_written[step]; r != kNone && windows[r].step == kNone)
        windows[r].made = s;
    }
    return windows;
  }

  /// A number for each move, by what it begins with.
  int key(const Move& move) const {
    return move.remake == kNone ? move.steps.front()
                                : static_cast<int>(problem_.memory.steps.size()) + move.remake;
  }

  /// Keeps what the dropped steps make again for the steps behind, where the peak does not mind: remaking it
  /// there would be a second time.
  void keep_repeated(const Move& move, Outcome& now) {
    for (const int s : move.steps) {
      const int r = makers_.remake_of_written[s];
      if (r == kNone || !choice_.remade[r]) continue;
      choice_.remade[r] = false;
      if (Outcome next = outcome(); now.better_than(next))
        choice_.remade[r] = true;
      else
        now = std::move(next);
    }
  }

  /// The choice after a move.
  Choice with(const Move& move) const {
    Choice choice = choice_;
    for (const int s : move.steps) choice.dropped[s] = true;
    if (move.remake != kNone) choice.remade[move.remake] = true;
    return choice;
  }

  std::optional<Move> best_move(const Outcome& now, const std::set<int>& rejected) const {
    std::optional<Move> best;
    const auto offer = [&](Move move) {
      if (move.bytes_per_second > 0 && (!best || move.bytes_per_second > best->bytes_per_second) &&
          !rejected.contains(key(move)))
        best = std::move(move);
    };
    for (int s = 0; s < problem_.turn; ++s)
      if (!choice_.dropped[s] && problem_.repeatable[s]) offer(drop(s, now.peak_step, now.reads));
    for (int r = 0; r < static_cast<int>(problem_.remakes.size()); ++r)
      if (!choice_.remade[r]) offer(remake(r, now));
    return best;
  }

  /// The value is freed where it waits for readers behind the step.
  Move remake(int r, const Outcome& now) const {
    const Remake& remake = problem_.remakes[r];
    const Window& window = now.windows[r];
    const Reads& reads = now.reads[remake.value];
    const int at = now.peak_step;
    const bool waits = choice_.dropped[makers_.writer[remake.value]] ||
                       (reads.last_early < at && reads.first_late > window.step);
    if (!waits || window.made >= at || at > window.step) return {};
    return {.steps = {},
            .remake = r,
            .bytes_per_second =
                static_cast<double>(size(remake.value)) / std::max(remake.seconds, kLeastSeconds)};
  }

  /// Bytes that dropping step `s` frees at step `at`.
  uint64_t freed(int s, int at, const std::vector<Reads>& reads) const {
    uint64_t bytes = 0;
    for (const int value : problem_.memory.steps[s].writes) {
      const Reads& r = reads[value];
      if (s < at && r.last_early < at && r.first_late > at) bytes += size(value);
    }
    return bytes;
  }

  /// Step `s` and the makers of those inputs that would otherwise have to be kept for it.
  Move drop(int s, int at, const std::vector<Reads>& reads) const {
    Move move;
    const uint64_t gain = freed(s, at, reads);
    if (gain == 0) return move;
    constexpr uint64_t kSmall = 16;  // inputs this much smaller than the gain are kept instead
    uint64_t kept = 0;
    double seconds = 0;
    move.steps.push_back(s);
    for (size_t i = 0; i < move.steps.size(); ++i) {
      seconds += problem_.seconds[move.steps[i]];
      for (const int value : problem_.memory.steps[move.steps[i]].reads) {
        const int maker = makers_.writer[value];
        const bool there = reads[value].first_late > at;
        if (there || choice_.dropped[maker] || std::ranges::count(move.steps, maker) > 0) continue;
        if (problem_.repeatable[maker] && size(value) > gain / kSmall)
          move.steps.push_back(maker);
        else
          kept += size(value);
      }
    }
    if (gain > kept)
      move.bytes_per_second = static_cast<double>(gain - kept) / std::max(seconds, kLeastSeconds);
    return move;
  }

  std::vector<Alternative> fastest_first() {
    std::ranges::stable_sort(found_, [](const Alternative& a, const Alternative& b) {
      return std::pair(a.extra_seconds, a.live_bytes) < std::pair(b.extra_seconds, b.live_bytes);
    });
    std::vector<Alternative> result;
    for (Alternative& alternative : found_)
      if (result.empty() || alternative.live_bytes < result.back().live_bytes)
        result.push_back(std::move(alternative));
    return result;
  }

  uint64_t size(int value) const { return aligned(problem_.memory.sizes[value]); }

  const RecomputeProblem& problem_;
  Makers makers_;
  Choice choice_;
  RepeatingProgram program_;  // of the last outcome
  std::vector<Alternative> found_;
};

}  // namespace

RepeatingProgram repeat_dropped(const RecomputeProblem& problem, const Choice& choice) {
  RepeatingProgram result;
  const Makers makers(problem);
  Repeater(problem, makers, choice, result).run();
  return result;
}

std::vector<Alternative> recompute_alternatives(const RecomputeProblem& problem) {
  return Search(problem).run();
}

}  // namespace moec::planner
