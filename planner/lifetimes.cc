#include "planner/lifetimes.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string_view>

namespace moec::planner {
namespace {

constexpr int kNever = -1;

[[noreturn]] void reject(int step, int value, std::string_view what) {
  throw std::invalid_argument(fmt::format("step {}: value {} {}", step, value, what));
}

/// When each value is written and last read.
struct Uses {
  std::vector<int> written;
  std::vector<int> last_read;
  std::vector<bool> live_out;
  std::vector<int> kept;  // the last step beside which one that lags may read it
};

/// The last step that step s may run beside.
int lagged(const Problem& problem, int s) {
  const auto last = static_cast<int64_t>(problem.steps.size()) - 1;
  return static_cast<int>(std::min(last, s + int64_t{problem.steps[s].lag}));
}

Uses collect_uses(const Problem& problem) {
  const int values = static_cast<int>(problem.sizes.size());
  const auto check = [&](int step, int value) {
    if (value < 0 || value >= values) reject(step, value, "is out of range");
  };
  Uses uses{std::vector<int>(values, kNever), std::vector<int>(values, kNever),
            std::vector<bool>(values, false), std::vector<int>(values, kNever)};
  const int steps = static_cast<int>(problem.steps.size());
  for (int s = 0; s < steps; ++s) {
    for (int value : problem.steps[s].reads) {
      check(s, value);
      if (uses.written[value] == kNever) reject(s, value, "is read before it is written");
      uses.last_read[value] = s;
      if (problem.steps[s].lag > 0) uses.kept[value] = std::max(uses.kept[value], lagged(problem, s));
    }
    for (int value : problem.steps[s].writes) {
      check(s, value);
      if (uses.written[value] != kNever) reject(s, value, "is written twice");
      uses.written[value] = s;
    }
  }
  for (int value : problem.live_out) {
    check(steps, value);
    if (uses.written[value] == kNever) reject(steps, value, "is live out but never written");
    uses.live_out[value] = true;
  }
  return uses;
}

/// Assigns buffers to values, step by step.
class Merger {
 public:
  explicit Merger(const Problem& problem) : problem_(problem), uses_(collect_uses(problem)) {
    result_.buffer_of_value.assign(problem.sizes.size(), -1);
    result_.buffer_of_workspace.assign(problem.steps.size(), -1);
  }

  Lifetimes run() {
    for (int s = 0; s < static_cast<int>(problem_.steps.size()); ++s) visit(s);
    return std::move(result_);
  }

 private:
  void visit(int s) {
    const Step& step = problem_.steps[s];
    std::vector<int> taken;
    for (bool required : {true, false})
      for (const Share& share : step.shares)
        if (share.required == required) take_over(s, share, taken);
    for (int value : step.writes) {
      int& buffer = result_.buffer_of_value[value];
      if (buffer < 0) buffer = new_buffer(problem_.sizes[value], s);
      extend(buffer, s);
      if (uses_.kept[value] != kNever) keep(buffer, uses_.kept[value]);
      if (uses_.live_out[value]) extend(buffer, static_cast<int>(problem_.steps.size()) - 1);
      if (uses_.last_read[value] != kNever) extend(buffer, uses_.last_read[value]);
    }
    if (step.workspace == 0) return;
    result_.buffer_of_workspace[s] = new_buffer(step.workspace, s);
    keep(result_.buffer_of_workspace[s], lagged(problem_, s));
  }

  /// Gives the input's buffer to the output, unless the output has one already or the step may not.
  void take_over(int s, const Share& share, std::vector<int>& taken) {
    const Step& step = problem_.steps[s];
    if (std::ranges::find(step.writes, share.output) == step.writes.end())
      reject(s, share.output, "is shared but not written");
    if (std::ranges::find(step.reads, share.input) == step.reads.end())
      reject(s, share.input, "is shared but not read");
    int& buffer = result_.buffer_of_value[share.output];
    const int wanted = result_.buffer_of_value[share.input];
    if (buffer == wanted) return;
    if (buffer < 0 && std::ranges::find(taken, share.input) == taken.end() && dies_here(s, share)) {
      buffer = wanted;
      taken.push_back(share.input);
    } else if (share.required) {
      reject(s, share.input,
             fmt::format("must be overwritten by value {} but is still needed", share.output));
    }
  }

  bool dies_here(int s, const Share& share) const {
    const Step& step = problem_.steps[s];
    const auto same = [&](const Share& other) {
      return other.output == share.output && other.input == share.input;
    };
    return uses_.last_read[share.input] == s && !uses_.live_out[share.input] &&
           (share.required || uses_.kept[share.input] < s) &&
           problem_.sizes[share.input] == problem_.sizes[share.output] &&
           std::ranges::count(step.reads, share.input) <= std::ranges::count_if(step.shares, same);
  }

  int new_buffer(uint64_t size, int s) {
    const uint32_t at = static_cast<uint32_t>(s);
    result_.buffers.push_back({.size = size, .first = at, .last = at});
    result_.kept.push_back(at);
    return static_cast<int>(result_.buffers.size()) - 1;
  }

  void extend(int buffer, int s) {
    uint32_t& last = result_.buffers[buffer].last;
    last = std::max(last, static_cast<uint32_t>(s));
    keep(buffer, s);
  }

  void keep(int buffer, int s) {
    uint32_t& kept = result_.kept[buffer];
    kept = std::max(kept, static_cast<uint32_t>(s));
  }

  const Problem& problem_;
  Uses uses_;
  Lifetimes result_;
};

}  // namespace

Lifetimes derive_lifetimes(const Problem& problem) {
  constexpr size_t kMost = std::numeric_limits<int>::max();
  if (problem.sizes.size() > kMost || problem.steps.size() > kMost)
    throw std::invalid_argument("a program of more than 2^31 values or steps");
  return Merger(problem).run();
}

}  // namespace moec::planner
