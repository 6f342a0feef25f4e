// Placement of 10,000 random problems of several families: no overlap, near the lower bound, never above
// greedy.
#include "families.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "planner/heuristics.h"
#include "planner/place.h"
#include "planner/validate_overlaps.h"

namespace moec::planner {
namespace {

/// The lowest of an allocator in time order and first fit with the largest or the longest buffers first.
uint64_t greedy_peak(const std::vector<Lifetime>& buffers) {
  uint64_t peak = best_fit_in_time(buffers).peak;
  const auto try_order = [&](auto key) {
    std::vector<int> order(buffers.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::greater{}, [&](int i) { return key(buffers[i]); });
    Budget budget{.left = ~uint64_t{0}};
    Layout layout;
    first_fit(buffers, order, ~uint64_t{0}, budget, layout);
    peak = std::min(peak, layout.peak);
  };
  const auto length = [](const Lifetime& buffer) { return uint64_t{buffer.last} - buffer.first; };
  try_order([&](const Lifetime& b) { return std::tuple(b.size, length(b), -int64_t{b.first}); });
  try_order([&](const Lifetime& b) { return std::tuple(length(b), b.size, -int64_t{b.first}); });
  return peak;
}

TEST_CASE("10,000 random placement problems") {
  constexpr int kProblems = 2'500;
  for (const auto& [name, make] : kFamilies) {
    std::vector<double> ratios;
    int overlapping = 0, above_greedy = 0, below_greedy = 0, wrong_peak = 0;
    for (unsigned seed = 0; seed < kProblems; ++seed) {
      std::mt19937 random(seed);
      const std::vector<Lifetime> buffers = make(random, 8 + random() % 60);
      const Offsets placed = place(buffers, 1);
      std::vector<PlacedBuffer> extents;
      uint64_t peak = 0;
      for (size_t i = 0; i < buffers.size(); ++i) {
        extents.push_back({placed.offsets[i], buffers[i].size, buffers[i].first, buffers[i].last});
        peak = std::max(peak, placed.offsets[i] + buffers[i].size);
      }
      const Overlaps overlaps = find_overlaps(extents, 1);
      overlapping += !overlaps.pairs.empty();
      wrong_peak += peak != placed.peak;
      const uint64_t greedy = greedy_peak(buffers);
      above_greedy += peak > greedy;
      below_greedy += peak < greedy;
      ratios.push_back(static_cast<double>(peak) / static_cast<double>(overlaps.most_live_bytes));
    }
    std::ranges::sort(ratios);
    MESSAGE(fmt::format(
        "{}: peak / bound median {:.4f}, 90% {:.4f}, 99% {:.4f}, worst {:.4f}; below greedy: {} of {}", name,
        ratios[kProblems / 2], ratios[kProblems * 9 / 10], ratios[kProblems * 99 / 100], ratios.back(),
        below_greedy, kProblems));
    CHECK(overlapping == 0);
    CHECK(wrong_peak == 0);
    CHECK(above_greedy == 0);
    CHECK(ratios.front() >= 1);
    CHECK(ratios[kProblems / 2] <= 1.01);
  }
}

}  // namespace
}  // namespace moec::planner
