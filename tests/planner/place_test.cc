#include "planner/place.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <stdexcept>
#include <vector>

#include "planner/planner.h"
#include "programs.h"

namespace moec::planner {
namespace {

bool apart(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) {
  return a_size == 0 || b_size == 0 || a + a_size <= b || b + b_size <= a;
}

/// Number of pairs of buffers that live together and share bytes.
int count_overlaps(const std::vector<Lifetime>& buffers, const std::vector<uint64_t>& offsets) {
  int overlaps = 0;
  for (size_t i = 0; i < buffers.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      overlaps += buffers[i].first <= buffers[j].last && buffers[j].first <= buffers[i].last &&
                  !apart(offsets[i], buffers[i].size, offsets[j], buffers[j].size);
  return overlaps;
}

/// Reads the problem again, executes it on an arena that records which value each byte belongs to, one
/// interval per value, and counts the reads that find another value's bytes.
int count_clobbered(const Problem& problem, const Placement& placement) {
  const auto offset = [&](int buffer) { return placement.offsets[buffer]; };
  std::vector<bool> intact(problem.sizes.size(), false);
  const auto overwrite = [&](uint64_t begin, uint64_t size) {
    for (size_t v = 0; v < intact.size(); ++v)
      if (intact[v] && !apart(begin, size, offset(placement.buffer_of_value[v]), problem.sizes[v]))
        intact[v] = false;
  };
  int clobbered = 0;
  for (size_t s = 0; s < problem.steps.size(); ++s) {
    const Step& step = problem.steps[s];
    // Scratch is overwritten while the inputs are still being read.
    if (step.workspace > 0) overwrite(offset(placement.buffer_of_workspace[s]), step.workspace);
    for (int value : step.reads) clobbered += !intact[value];
    for (int value : step.writes) overwrite(offset(placement.buffer_of_value[value]), problem.sizes[value]);
    for (int value : step.writes) intact[value] = true;
  }
  for (int value : problem.live_out) clobbered += !intact[value];
  return clobbered;
}

double ratio(uint64_t peak, uint64_t lower_bound) {
  return lower_bound == 0 ? 1.0 : static_cast<double>(peak) / static_cast<double>(lower_bound);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST_CASE("the lower bound is the largest sum of aligned live bytes") {
  const std::vector<Lifetime> buffers = {{100, 0, 2}, {300, 2, 5}, {1, 5, 9}, {0, 0, 9}};
  CHECK(live_bytes_lower_bound(buffers, 1) == 400);
  CHECK(live_bytes_lower_bound(buffers, 256) == 768);
  CHECK(live_bytes_lower_bound({}, 256) == 0);
}

TEST_CASE("small placements") {
  CHECK(place({}, 256).peak == 0);
  CHECK(place({{0, 0, 3}}, 256).peak == 0);
  CHECK(place({{1, 0, 0}, {1, 1, 1}}, 256).peak == 256);
  CHECK(place({{1, 0, 1}, {1, 1, 1}}, 256).peak == 512);
}

TEST_CASE("absurd buffers are refused") {
  CHECK_THROWS_AS(place({{~uint64_t{0}, 0, 0}}, 256), std::invalid_argument);
  CHECK_THROWS_AS(place({{uint64_t{1} << 61, 0, 0}, {uint64_t{1} << 61, 0, 0}, {1, 0, 0}}, 256),
                  std::invalid_argument);
  CHECK_THROWS_AS(place({{1, 4, 3}}, 256), std::invalid_argument);
}

TEST_CASE("10,000 random problems are placed without overlap, half of them within 1% of the bound") {
  std::vector<double> ratios;
  int overlaps = 0, clobbered = 0, misaligned = 0, outside = 0;
  for (unsigned seed = 0; seed < 10'000; ++seed) {
    std::mt19937 random(seed);
    const Problem problem = random_problem(random, 3 + static_cast<int>(random() % 60));
    const Placement placement = plan_memory(problem);
    overlaps += count_overlaps(placement.buffers, placement.offsets);
    clobbered += count_clobbered(problem, placement);
    for (size_t b = 0; b < placement.buffers.size(); ++b) {
      misaligned += placement.offsets[b] % kAlignment != 0;
      outside += placement.offsets[b] + placement.buffers[b].size > placement.peak;
    }
    REQUIRE(placement.peak >= placement.lower_bound);
    ratios.push_back(ratio(placement.peak, placement.lower_bound));
  }
  CHECK(overlaps == 0);
  CHECK(clobbered == 0);
  CHECK(misaligned == 0);
  CHECK(outside == 0);
  std::ranges::sort(ratios);
  MESSAGE(fmt::format("peak / bound: median {:.4f}, 90% {:.4f}, 99% {:.4f}, worst {:.4f}", ratios[5'000],
                      ratios[9'000], ratios[9'900], ratios.back()));
  CHECK(ratios[5'000] <= 1.01);
}

TEST_CASE("the test's own overlap counts notice a bad placement") {
  std::mt19937 random(1);
  const Problem problem = random_problem(random, 60);
  Placement placement = plan_memory(problem);
  std::ranges::fill(placement.offsets, 0);
  CHECK(count_overlaps(placement.buffers, placement.offsets) > 0);
  CHECK(count_clobbered(problem, placement) > 0);
}

TEST_CASE("transformer programs reach at most 1.05 of the bound") {
  const TransformerShape shapes[] = {
      {.layers = 2, .tokens = 256, .dim = 64, .ffn = 256, .top_k = 2, .vocab = 1'000, .element = 4},
      {.layers = 4, .tokens = 1'024, .dim = 128, .ffn = 512, .top_k = 1, .vocab = 75, .element = 4},
      {.layers = 12, .tokens = 8'192, .dim = 768, .ffn = 3'072, .top_k = 2, .vocab = 95},
      {.layers = 24, .tokens = 4'096, .dim = 896, .ffn = 4'864, .top_k = 1, .vocab = 151'936},
      {.layers = 30, .tokens = 32'768, .dim = 768, .ffn = 6'144, .top_k = 4, .vocab = 32'000},
  };
  for (const TransformerShape& shape : shapes) {
    const Problem problem = transformer(shape);
    const auto start = std::chrono::steady_clock::now();
    const Placement placement = plan_memory(problem);
    const double seconds = seconds_since(start);
    const double reached = ratio(placement.peak, placement.lower_bound);
    MESSAGE(fmt::format("{} layers, {} buffers: peak / bound {:.4f} ({}), {:.3f} s", shape.layers,
                        placement.buffers.size(), reached, placement.heuristic, seconds));
    CHECK(reached <= 1.05);
    CHECK(count_overlaps(placement.buffers, placement.offsets) == 0);
    CHECK(count_clobbered(problem, placement) == 0);
  }
}

TEST_CASE("20,000 buffers are placed, twice alike") {
  std::mt19937 random(7);
  std::vector<Lifetime> buffers;
  for (int i = 0; i < 20'000; ++i) {
    const uint32_t first = static_cast<uint32_t>(random() % 20'000);
    const uint32_t length = static_cast<uint32_t>(random() % (random() % 4 ? 50u : 10'000u));
    buffers.push_back({.size = random() % 1'000'000, .first = first, .last = first + length});
  }
  const auto start = std::chrono::steady_clock::now();
  const Offsets placed = place(buffers, kAlignment);
  const double seconds = seconds_since(start);
  const double reached = ratio(placed.peak, live_bytes_lower_bound(buffers, kAlignment));
  MESSAGE(
      fmt::format("20,000 buffers: peak / bound {:.4f} ({}), {:.2f} s", reached, placed.heuristic, seconds));
  CHECK(reached <= 1.05);
  CHECK(count_overlaps(buffers, placed.offsets) == 0);
  CHECK(place(buffers, kAlignment).offsets == placed.offsets);
}

}  // namespace
}  // namespace moec::planner
