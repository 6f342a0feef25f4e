// The complete search against every order of small problems, and on the public instances.
#include "planner/search.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "families.h"
#include "planner/place.h"
#include "planner/validate_overlaps.h"

namespace moec::planner {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

SearchResult search_all(const std::vector<Lifetime>& blocks, uint64_t capacity) {
  Budget budget{.left = kUnlimited};
  return search(blocks, capacity, budget);
}

bool overlaps(const std::vector<Lifetime>& blocks, const std::vector<uint64_t>& offsets) {
  std::vector<PlacedBuffer> placed;
  for (size_t i = 0; i < blocks.size(); ++i)
    placed.push_back({offsets[i], blocks[i].size, blocks[i].first, blocks[i].last});
  return !find_overlaps(placed, 1).pairs.empty();
}

/// The least peak of first fit over all orders of the blocks. Lowering every block of a placement as far as
/// it goes, from the lowest up, gives the first fit of that order, so none is better.
uint64_t least_peak(const std::vector<Lifetime>& blocks) {
  std::vector<int> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  uint64_t least = kUnlimited;
  do {
    Budget budget{.left = kUnlimited};
    Layout layout;
    if (first_fit(blocks, order, least - 1, budget, layout) == blocks.size()) least = layout.peak;
  } while (std::ranges::next_permutation(order).found);
  return least;
}

std::vector<Lifetime> random_blocks(std::mt19937& random, size_t count, uint32_t steps, uint64_t largest) {
  std::vector<Lifetime> blocks;
  for (size_t i = 0; i < count; ++i) {
    const auto first = static_cast<uint32_t>(random() % steps);
    const auto last = first + static_cast<uint32_t>(random() % (steps - first));
    blocks.push_back({.size = random() % (largest + 1), .first = first, .last = last});
  }
  return blocks;
}

TEST_CASE("the search finds the least peak of small problems") {
  std::mt19937 random(3);
  for (int trial = 0; trial < 1'000; ++trial) {
    const size_t count = 1 + random() % 7;
    const auto steps = 2 + static_cast<uint32_t>(random() % 6);
    const std::vector<Lifetime> blocks = random_blocks(random, count, steps, 1 + random() % 6);
    CAPTURE(trial);
    const uint64_t least = least_peak(blocks);
    const SearchResult found = search_all(blocks, least);
    REQUIRE(found.verdict == Verdict::kPlaced);
    CHECK(found.layout.peak <= least);
    CHECK_FALSE(overlaps(blocks, found.layout.offsets));
    if (least > 0) CHECK(search_all(blocks, least - 1).verdict == Verdict::kImpossible);
  }
}

TEST_CASE("the search shows that a capacity at the lower bound is too little") {
  const std::vector<Lifetime> blocks = {{1, 2, 3}, {3, 4, 4}, {2, 2, 5}, {1, 0, 4}, {4, 5, 5},
                                        {3, 1, 1}, {4, 1, 2}, {2, 3, 5}, {3, 0, 5}};
  const uint64_t bound = live_bytes_lower_bound(blocks, 1);
  CHECK(search_all(blocks, bound).verdict == Verdict::kImpossible);
  CHECK(least_peak(blocks) == bound + 1);
  CHECK(search_all(blocks, bound + 1).verdict == Verdict::kPlaced);
}

TEST_CASE("rectangles without a gap are put together again") {
  uint64_t nodes = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const std::vector<Lifetime> blocks = cut_rectangle(random, 5 + seed / 10);
    const uint64_t bound = live_bytes_lower_bound(blocks, 1);
    const SearchResult found = search_all(blocks, bound);
    CAPTURE(seed);
    CHECK(found.verdict == Verdict::kPlaced);
    CHECK(found.layout.peak == bound);
    CHECK_FALSE(overlaps(blocks, found.layout.offsets));
    nodes += found.nodes;
  }
  MESSAGE(fmt::format("{} nodes", nodes));
}

TEST_CASE("nothing to place, blocks of no bytes, a block above the capacity") {
  CHECK(search_all({{0, 0, 3}}, 0).verdict == Verdict::kPlaced);
  CHECK(search_all({{5, 0, 3}}, 5).verdict == Verdict::kPlaced);
  CHECK(search_all({{5, 0, 3}}, 4).verdict == Verdict::kImpossible);
  CHECK(search_all({{2, 0, 1}, {3, 1, 1}}, 4).verdict == Verdict::kImpossible);
}

TEST_CASE("the search stops when its budget is spent, and counts alike every time") {
  std::mt19937 random(11);
  const std::vector<Lifetime> blocks = random_blocks(random, 120, 60, 1'000);
  const uint64_t bound = live_bytes_lower_bound(blocks, 1);
  for (const uint64_t work : {uint64_t{0}, uint64_t{1'000}, uint64_t{100'000}}) {
    CAPTURE(work);
    Budget budget{.left = work}, again{.left = work};
    const SearchResult first = search(blocks, bound, budget), second = search(blocks, bound, again);
    CHECK(first.verdict == second.verdict);
    CHECK(first.nodes == second.nodes);
    CHECK(first.layout.offsets == second.layout.offsets);
    CHECK(budget.left == again.left);
    if (work == 0) CHECK(first.verdict == Verdict::kBudgetSpent);
  }
}

TEST_CASE("the independent overlap check agrees with a comparison of all pairs") {
  std::mt19937 random(5);
  int sound = 0;
  for (int trial = 0; trial < 2'000; ++trial) {
    const std::vector<Lifetime> blocks = random_blocks(random, 2 + random() % 5, 6, 10);
    std::vector<uint64_t> offsets;
    for (size_t i = 0; i < blocks.size(); ++i) offsets.push_back(random() % 40);
    const auto clash = [&](size_t a, size_t b) {
      return blocks[a].size > 0 && blocks[b].size > 0 && blocks[a].first <= blocks[b].last &&
             blocks[b].first <= blocks[a].last && offsets[a] < offsets[b] + blocks[b].size &&
             offsets[b] < offsets[a] + blocks[a].size;
    };
    bool any = false;
    for (size_t a = 0; a < blocks.size(); ++a)
      for (size_t b = 0; b < a; ++b) any = any || clash(a, b);
    CAPTURE(trial);
    CHECK(overlaps(blocks, offsets) == any);
    sound += !any;
  }
  CHECK(sound > 100);
  CHECK(sound < 1'900);
}

/// Rows "id,lower,upper,size" of a minimalloc benchmark; upper is exclusive.
std::vector<Lifetime> read_minimalloc(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  std::vector<Lifetime> buffers;
  while (std::getline(file, line)) {
    unsigned id = 0, lower = 0, upper = 0;
    unsigned long long size = 0;
    REQUIRE(std::sscanf(line.c_str(), "%u,%u,%u,%llu", &id, &lower, &upper, &size) == 4);
    buffers.push_back({.size = size, .first = lower, .last = upper - 1});
  }
  return buffers;
}

TEST_CASE("minimalloc benchmarks are placed within their capacity") {
  const std::filesystem::path folder = std::filesystem::path(MOEC_SOURCE_DIR) / "../shared/data/minimalloc";
  if (!std::filesystem::is_directory(folder)) {
    MESSAGE("skipped: no minimalloc data beside the source tree");
    return;
  }
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".csv") files.push_back(entry.path());
  std::ranges::sort(files);
  for (const std::filesystem::path& path : files) {
    constexpr uint64_t kCapacity = 1'048'576;
    constexpr uint64_t kWork = 2'000'000'000;  // about 3 s on one core
    const std::vector<Lifetime> buffers = read_minimalloc(path);
    const auto start = std::chrono::steady_clock::now();
    const Fit fit = place_within(buffers, 1, kCapacity, kWork);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    MESSAGE(fmt::format("{}: peak {}, {} nodes, {:.2f} s", path.filename().string(), fit.placed.peak,
                        fit.nodes, seconds.count()));
    CHECK(fit.verdict == Verdict::kPlaced);
    CHECK(fit.placed.peak <= kCapacity);
    CHECK_FALSE(overlaps(buffers, fit.placed.offsets));
  }
}

}  // namespace
}  // namespace moec::planner
