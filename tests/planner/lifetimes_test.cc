#include "planner/lifetimes.h"

#include <doctest/doctest.h>

#include <stdexcept>

namespace moec::planner {
namespace {

TEST_CASE("a value lives from its write to its last read") {
  const Problem problem{.sizes = {100, 50, 10},
                        .steps = {{.reads = {}, .writes = {0}, .shares = {}, .workspace = 0},
                                  {.reads = {0}, .writes = {1}, .shares = {}, .workspace = 7},
                                  {.reads = {0}, .writes = {}, .shares = {}, .workspace = 0},
                                  {.reads = {}, .writes = {2}, .shares = {}, .workspace = 0}},
                        .live_out = {1}};
  const Lifetimes result = derive_lifetimes(problem);
  CHECK(result.buffer_of_value == std::vector<int>{0, 1, 3});
  CHECK(result.buffer_of_workspace == std::vector<int>{-1, 2, -1, -1});
  REQUIRE(result.buffers.size() == 4);
  const auto is = [&](int b, uint64_t size, uint32_t first, uint32_t last) {
    const Lifetime& buffer = result.buffers[b];
    return buffer.size == size && buffer.first == first && buffer.last == last;
  };
  CHECK(is(0, 100, 0, 2));
  CHECK(is(1, 50, 1, 3));  // live out
  CHECK(is(2, 7, 1, 1));   // workspace
  CHECK(is(3, 10, 3, 3));  // never read
}

/// Step 0 writes 0, step 1 turns 0 into 1 and step 2 turns 1 into 2, each sharing.
Problem chain() {
  return {.sizes = {64, 64, 64},
          .steps = {{.reads = {}, .writes = {0}, .shares = {}, .workspace = 0},
                    {.reads = {0}, .writes = {1}, .shares = {{1, 0, false}}, .workspace = 0},
                    {.reads = {1}, .writes = {2}, .shares = {{2, 1, false}}, .workspace = 0}},
          .live_out = {}};
}

TEST_CASE("a chain of shares is one buffer") {
  const Lifetimes result = derive_lifetimes(chain());
  CHECK(result.buffer_of_value == std::vector<int>{0, 0, 0});
  REQUIRE(result.buffers.size() == 1);
  CHECK(result.buffers[0].first == 0);
  CHECK(result.buffers[0].last == 2);
}

TEST_CASE("what a lagging step reads and its workspace keep their places") {
  Problem problem = chain();
  problem.steps.insert(problem.steps.begin() + 1,
                       {.reads = {0}, .writes = {}, .shares = {}, .workspace = 8, .lag = 1});
  const Lifetimes result = derive_lifetimes(problem);
  // Step 2 may not take over value 0, step 3 may take over value 1.
  CHECK(result.buffer_of_value == std::vector<int>{0, 2, 2});
  CHECK(result.buffer_of_workspace[1] == 1);
  CHECK(result.kept == std::vector<uint32_t>{2, 2, 3});
  CHECK(result.buffers[0].last == 2);
  CHECK(result.buffers[1].last == 1);

  problem.steps[2].shares[0].required = true;
  CHECK(derive_lifetimes(problem).buffer_of_value == std::vector<int>{0, 0, 0});
}

TEST_CASE("an input is not taken over") {
  Problem problem = chain();
  SUBCASE("when a later step reads it") { problem.steps[2].reads.push_back(0); }
  SUBCASE("when it lives out") { problem.live_out = {0}; }
  SUBCASE("when the sizes differ") { problem.sizes[0] = 65; }
  SUBCASE("when the step reads it in a second place that may not be overwritten") {
    problem.steps[1].reads.push_back(0);
  }
  CHECK(derive_lifetimes(problem).buffer_of_value == std::vector<int>{0, 1, 1});
  problem.steps[1].shares[0].required = true;
  CHECK_THROWS_AS(derive_lifetimes(problem), std::invalid_argument);
}

TEST_CASE("an input is taken over by one output, a required share first") {
  Problem problem = chain();
  problem.sizes.push_back(64);
  problem.steps[1].writes.push_back(3);
  problem.steps[1].shares.push_back({3, 0, true});
  CHECK(derive_lifetimes(problem).buffer_of_value == std::vector<int>{0, 1, 1, 0});
}

TEST_CASE("an input read twice is taken over when both places may be overwritten") {
  Problem problem = chain();
  problem.steps[1].reads.push_back(0);
  problem.steps[1].shares.push_back({1, 0, false});
  CHECK(derive_lifetimes(problem).buffer_of_value == std::vector<int>{0, 0, 0});
}

TEST_CASE("unsound problems are refused") {
  Problem problem = chain();
  SUBCASE("read before written") { problem.steps[0].reads.push_back(2); }
  SUBCASE("read by its own writer") { problem.steps[0].reads.push_back(0); }
  SUBCASE("written twice") { problem.steps[2].writes.push_back(0); }
  SUBCASE("index too large") { problem.steps[2].reads.push_back(3); }
  SUBCASE("negative index") { problem.steps[2].writes.push_back(-1); }
  SUBCASE("live out but never written") {
    problem.sizes.push_back(1);
    problem.live_out = {3};
  }
  SUBCASE("live out of range") { problem.live_out = {99}; }
  SUBCASE("share of a value that the step does not read") { problem.steps[2].shares[0].input = 0; }
  SUBCASE("share of a value that the step does not write") { problem.steps[2].shares[0].output = 0; }
  CHECK_THROWS_AS(derive_lifetimes(problem), std::invalid_argument);
}

TEST_CASE("a value of no bytes has a buffer, an untouched one has none") {
  const Problem problem{
      .sizes = {0, 8}, .steps = {{.reads = {}, .writes = {0}, .shares = {}, .workspace = 0}}, .live_out = {}};
  const Lifetimes result = derive_lifetimes(problem);
  CHECK(result.buffer_of_value == std::vector<int>{0, -1});
  REQUIRE(result.buffers.size() == 1);
  CHECK(result.buffers[0].size == 0);
}

}  // namespace
}  // namespace moec::planner
