// Placement of 10,000 random problems of several families: no overlap, near the lower bound, never above
// greedy.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "planner/heuristics.h"
#include "planner/place.h"
#include "planner/validate_overlaps.h"

namespace moec::planner {
namespace {

uint32_t below(std::mt19937& random, size_t bound) { return static_cast<uint32_t>(random() % bound); }

std::vector<Lifetime> random_intervals(std::mt19937& random, size_t count) {
  std::vector<Lifetime> buffers;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t first = below(random, 2 * count), length = below(random, random() % 4 ? 6 : count);
    buffers.push_back({.size = 1 + random() % 100'000, .first = first, .last = first + length});
  }
  return buffers;
}

/// Saved by layer after layer, freed in reverse order, with scratch in between.
std::vector<Lifetime> forward_and_backward(std::mt19937& random, size_t count) {
  std::vector<Lifetime> buffers;
  const auto steps = static_cast<uint32_t>(count);
  for (uint32_t step = 0; step < steps / 2; ++step) {
    const uint32_t undone = steps - 1 - step;
    const uint64_t hidden = 256 * (1 + random() % 8);
    buffers.push_back({.size = hidden, .first = step, .last = undone});
    const uint32_t scratch = random() % 2 ? step : undone;
    buffers.push_back(
        {.size = 256 * (1 + random() % 64), .first = scratch, .last = scratch + below(random, 3)});
  }
  return buffers;
}

std::vector<Lifetime> few_huge_many_small(std::mt19937& random, size_t count) {
  std::vector<Lifetime> buffers;
  for (size_t i = 0; i < count; ++i) {
    const bool huge = i % 10 == 0;
    const uint32_t first = below(random, count), length = below(random, huge ? 4 : count / 2 + 1);
    const uint64_t size = huge ? 1'000'000 + random() % 9'000'000 : 1 + random() % 50'000;
    buffers.push_back({.size = size, .first = first, .last = first + length});
  }
  return buffers;
}

/// A full arena cut at random into rectangles: a placement at the lower bound exists.
std::vector<Lifetime> cut_rectangle(std::mt19937& random, size_t count) {
  std::vector<Lifetime> pieces = {{.size = 1'000'000, .first = 0, .last = static_cast<uint32_t>(count)}};
  while (pieces.size() < count) {
    Lifetime& piece = pieces[below(random, pieces.size())];
    Lifetime rest = piece;
    if (random() % 2 && piece.first < piece.last) {
      piece.last = piece.first + below(random, piece.last - piece.first);
      rest.first = piece.last + 1;
    } else if (piece.size > 1) {
      piece.size = 1 + random() % (piece.size - 1);
      rest.size -= piece.size;
    } else {
      continue;
    }
    pieces.push_back(rest);
  }
  return pieces;
}

/// The lowest of an allocator in time order and first fit with the largest and with the longest buffers
/// first.
uint64_t greedy_peak(const std::vector<Lifetime>& buffers) {
  uint64_t peak = best_fit_in_time(buffers).peak;
  for (const bool by_size : {true, false}) {
    std::vector<int> order(buffers.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::greater{}, [&](int i) {
      return by_size ? buffers[i].size : uint64_t{buffers[i].last} - buffers[i].first;
    });
    Budget budget{.left = ~uint64_t{0}};
    Layout layout;
    first_fit(buffers, order, ~uint64_t{0}, budget, layout);
    peak = std::min(peak, layout.peak);
  }
  return peak;
}

TEST_CASE("10,000 random placement problems") {
  struct Family {
    const char* name;
    std::vector<Lifetime> (*make)(std::mt19937&, size_t count);
  };
  constexpr Family kFamilies[] = {{"random intervals", random_intervals},
                                  {"forward and backward", forward_and_backward},
                                  {"few huge, many small", few_huge_many_small},
                                  {"cut rectangle", cut_rectangle}};
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
