#include "planner/order.h"

#include <algorithm>
#include <cstdint>
#include <set>

namespace moec::planner {
namespace {

std::vector<int> distinct(std::vector<int> values) {
  std::ranges::sort(values);
  values.erase(std::ranges::unique(values).begin(), values.end());
  return values;
}

/// Takes steps one by one from those whose dependences have run.
class Scheduler {
 public:
  Scheduler(const Problem& problem, const std::vector<std::pair<int, int>>& before)
      : problem_(problem),
        reads_(problem.steps.size()),
        followers_(problem.steps.size()),
        waiting_for_(problem.steps.size(), 0),
        readers_left_(problem.sizes.size(), 0) {
    std::vector<int> writer(problem.sizes.size(), -1);
    for (int s = 0; s < static_cast<int>(problem.steps.size()); ++s) {
      reads_[s] = distinct(problem.steps[s].reads);
      for (const int value : reads_[s]) {
        ++readers_left_[value];
        if (writer[value] >= 0) add_edge(writer[value], s);
      }
      for (const int value : problem.steps[s].writes) writer[value] = s;
    }
    for (const int value : problem.live_out) ++readers_left_[value];
    for (const auto& [first, second] : before) add_edge(first, second);
  }

  std::vector<int> run() {
    for (int s = 0; s < static_cast<int>(reads_.size()); ++s)
      if (waiting_for_[s] == 0) ready_.insert(s);
    std::vector<int> order;
    while (!ready_.empty()) {
      const int s = next();
      order.push_back(s);
      ready_.erase(s);
      for (const int value : reads_[s]) --readers_left_[value];
      for (const int follower : followers_[s])
        if (--waiting_for_[follower] == 0) ready_.insert(follower);
    }
    return order;
  }

 private:
  void add_edge(int first, int second) {
    followers_[first].push_back(second);
    ++waiting_for_[second];
  }

  /// What the step leaves live more than it finds.
  int64_t growth(int s) const {
    int64_t bytes = 0;
    for (const int value : problem_.steps[s].writes)
      if (readers_left_[value] > 0) bytes += static_cast<int64_t>(problem_.sizes[value]);
    for (const int value : reads_[s])
      if (readers_left_[value] == 1) bytes -= static_cast<int64_t>(problem_.sizes[value]);
    return bytes;
  }

  int next() const {
    int best = *ready_.begin();
    int64_t least = growth(best);
    for (const int s : ready_) {
      const int64_t bytes = growth(s);
      if (bytes <= 0 && bytes < least) {
        best = s;
        least = bytes;
      }
    }
    return best;
  }

  const Problem& problem_;
  std::vector<std::vector<int>> reads_, followers_;
  std::vector<int> waiting_for_;   // per step: dependences that have not run
  std::vector<int> readers_left_;  // per value
  std::set<int> ready_;
};

}  // namespace

std::vector<int> order_steps(const Problem& problem, const std::vector<std::pair<int, int>>& before) {
  return Scheduler(problem, before).run();
}

}  // namespace moec::planner
