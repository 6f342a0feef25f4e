// Orders of steps keep dependences and free memory early.
#include "planner/order.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "planner/lifetimes.h"
#include "planner/place.h"
#include "programs.h"

namespace moec::planner {
namespace {

Problem reordered(const Problem& problem, const std::vector<int>& order) {
  Problem result{.sizes = problem.sizes, .steps = {}, .live_out = problem.live_out};
  for (const int s : order) result.steps.push_back(problem.steps[s]);
  return result;
}

uint64_t live_peak(const Problem& problem) {
  return live_bytes_lower_bound(derive_lifetimes(problem).buffers, kAlignment);
}

TEST_CASE("random programs keep their dependences") {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const int steps = 2 + static_cast<int>(random() % 60);
    const Problem problem = random_problem(random, steps);
    std::vector<std::pair<int, int>> before;
    for (int k = static_cast<int>(random() % 8); k > 0; --k) {
      const int first = static_cast<int>(random() % static_cast<unsigned>(steps - 1));
      before.emplace_back(first,
                          first + 1 + static_cast<int>(random() % static_cast<unsigned>(steps - 1 - first)));
    }
    const std::vector<int> order = order_steps(problem, before);
    REQUIRE(order.size() == static_cast<size_t>(steps));
    std::vector<int> place(steps, -1);
    for (int i = 0; i < steps; ++i) place[order[i]] = i;
    CHECK(std::ranges::count(place, -1) == 0);
    for (const auto& [first, second] : before) CHECK(place[first] < place[second]);
    derive_lifetimes(reordered(problem, order));  // throws where a value is read before it is written
  }
}

TEST_CASE("what only a side step reads is freed before the way goes on") {
  // 0 is saved; 1 arrives; step 2 makes the large 2 from 1, step 3 reads 0 and 1 and leaves nothing.
  const Problem problem{.sizes = {1000 * 256, 256, 1000 * 256, 256},
                        .steps = {{.reads = {}, .writes = {0}, .shares = {}, .workspace = 0},
                                  {.reads = {}, .writes = {1}, .shares = {}, .workspace = 0},
                                  {.reads = {1}, .writes = {2}, .shares = {}, .workspace = 0},
                                  {.reads = {0, 1}, .writes = {}, .shares = {}, .workspace = 0},
                                  {.reads = {2}, .writes = {3}, .shares = {}, .workspace = 0}},
                        .live_out = {}};
  const std::vector<int> order = order_steps(problem, {});
  CHECK(order == std::vector<int>{0, 1, 3, 2, 4});
  CHECK(live_peak(problem) == 2001 * 256);
  CHECK(live_peak(reordered(problem, order)) == 1001 * 256);
}

TEST_CASE("a transformer's peak does not rise") {
  for (const int layers : {1, 4, 12}) {
    const Problem problem =
        transformer({.layers = layers, .tokens = 1024, .dim = 256, .ffn = 512, .top_k = 2, .vocab = 100});
    CHECK(live_peak(reordered(problem, order_steps(problem, {}))) <= live_peak(problem));
  }
}

}  // namespace
}  // namespace moec::planner
