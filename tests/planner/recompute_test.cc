// Recompute: repeats compute what was dropped, and less memory costs more time.
#include "planner/recompute.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "planner/lifetimes.h"
#include "programs.h"

namespace moec::planner {
namespace {

/// A program whose every step may run again in a time that grows with what it writes.
RecomputeProblem with_times(Problem memory, int turn) {
  RecomputeProblem problem{.memory = std::move(memory)};
  for (const Step& step : problem.memory.steps) {
    double bytes = 1;
    for (const int value : step.writes) bytes += static_cast<double>(problem.memory.sizes[value]);
    problem.seconds.push_back(bytes);
  }
  problem.repeatable.assign(problem.memory.steps.size(), true);
  problem.turn = turn;
  return problem;
}

/// Steps of the forward pass of programs.h's transformer.
int forward_steps(int layers) { return 3 + 16 * layers; }

/// Lets steps of the backward pass remake values that are read behind them, where `wanted` says so.
void add_remakes(RecomputeProblem& problem, const std::function<bool()>& wanted) {
  const std::vector<Step>& steps = problem.memory.steps;
  const int count = static_cast<int>(steps.size());
  std::vector<bool> taken(steps.size());
  for (int maker = 0; maker < problem.turn; ++maker) {
    if (steps[maker].writes.empty()) continue;
    const int value = steps[maker].writes.back();
    int reader = count - 1;
    while (reader >= problem.turn && std::ranges::count(steps[reader].reads, value) == 0) --reader;
    int step = reader - 1;
    while (step >= problem.turn && taken[step]) --step;
    if (step < problem.turn || !wanted()) continue;
    taken[step] = true;
    const int again = static_cast<int>(problem.memory.sizes.size());
    problem.memory.sizes.push_back(problem.memory.sizes[value]);
    Remake remake{.step = step, .value = value, .again = again, .instead = steps[step], .seconds = 1};
    remake.instead.writes.push_back(again);
    remake.instead.workspace = 0;
    problem.remakes.push_back(std::move(remake));
  }
}

/// What every value holds, as a hash of the original step that made it and of what that read. A remade value
/// holds what `original` says.
std::vector<uint64_t> contents(const RecomputeProblem& original, const Problem& problem,
                               const std::vector<int>& step, const std::vector<uint64_t>& expected = {}) {
  std::vector<uint64_t> held(problem.sizes.size(), 0);
  for (size_t s = 0; s < problem.steps.size(); ++s) {
    uint64_t hash = static_cast<uint64_t>(step[s]) + 1;
    for (const int value : problem.steps[s].reads) hash = hash * 6364136223846793005u + held[value];
    for (const int value : problem.steps[s].writes) {
      const auto remake = std::ranges::find(original.remakes, value, &Remake::again);
      held[value] = hash = remake != original.remakes.end() ? expected[remake->value]
                                                            : hash * 2862933555777941757u + 3037000493u;
    }
  }
  return held;
}

void check_sound(const RecomputeProblem& original, const RepeatingProgram& program) {
  derive_lifetimes(program.problem);  // throws where a value is read before it is written
  std::vector<int> identity(original.memory.steps.size());
  std::iota(identity.begin(), identity.end(), 0);
  const auto expected = contents(original, original.memory, identity),
             found = contents(original, program.problem, program.step, expected);
  std::vector<int> firsts;
  for (size_t s = 0; s < program.step.size(); ++s) {
    if (!program.repeat[s]) firsts.push_back(program.step[s]);
    const Step &now = program.problem.steps[s], &then = original.memory.steps[program.step[s]];
    CHECK((program.remake[s] || now.workspace == then.workspace));
    for (size_t i = 0; i < then.reads.size(); ++i) CHECK(found[now.reads[i]] == expected[then.reads[i]]);
    for (size_t i = 0; i < then.writes.size(); ++i) CHECK(found[now.writes[i]] == expected[then.writes[i]]);
  }
  CHECK(firsts == identity);
}

TEST_CASE("repeats hold what the dropped steps wrote, on random programs") {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const int steps = 5 + static_cast<int>(random() % 40);
    const auto chance = [&] { return random() % 2 == 0; };
    RecomputeProblem problem =
        with_times(random_problem(random, steps), static_cast<int>(random() % static_cast<unsigned>(steps)));
    add_remakes(problem, chance);
    Choice choice{std::vector<bool>(steps), std::vector<bool>(problem.remakes.size())};
    for (int s = 0; s < problem.turn; ++s) choice.dropped[s] = chance();
    for (size_t r = 0; r < problem.remakes.size(); ++r) choice.remade[r] = chance();
    check_sound(problem, repeat_dropped(problem, choice));
  }
}

TEST_CASE("a dropped value is made again once, before its first late reader, after what it needs itself") {
  // 0 -> 1 -> 2 in the forward pass; the backward pass reads 2, then 1.
  const RecomputeProblem problem =
      with_times({.sizes = {64, 64, 64, 64, 64},
                  .steps = {{.reads = {}, .writes = {0}, .shares = {}, .workspace = 0},
                            {.reads = {0}, .writes = {1}, .shares = {}, .workspace = 9},
                            {.reads = {1}, .writes = {2}, .shares = {}, .workspace = 0},
                            {.reads = {2}, .writes = {3}, .shares = {}, .workspace = 0},
                            {.reads = {1, 3}, .writes = {4}, .shares = {}, .workspace = 0}},
                  .live_out = {4}},
                 3);
  const RepeatingProgram program =
      repeat_dropped(problem, {.dropped = {false, true, true, false, false}, .remade = {}});
  CHECK(program.step == std::vector<int>{0, 1, 2, 1, 2, 3, 4});
  CHECK(program.repeat == std::vector<bool>{false, false, false, true, true, false, false});
  CHECK(program.extra_seconds == problem.seconds[1] + problem.seconds[2]);
  check_sound(problem, program);
}

TEST_CASE("a remade value is read by the steps behind, and not kept for them") {
  // 0 is read in the forward pass, and by the last step; the one before can make it again as value 4.
  RecomputeProblem problem = with_times({.sizes = {640, 64, 64, 64, 640},
                                         .steps = {{.reads = {}, .writes = {0}},
                                                   {.reads = {0}, .writes = {1}, .workspace = 512},
                                                   {.reads = {1}, .writes = {2}},
                                                   {.reads = {0, 2}, .writes = {3}}},
                                         .live_out = {3}},
                                        2);
  problem.remakes.push_back(
      {.step = 2, .value = 0, .again = 4, .instead = {.reads = {1}, .writes = {2, 4}}, .seconds = 0.25});
  const RepeatingProgram kept = repeat_dropped(problem, {std::vector<bool>(4), {false}}),
                         remade = repeat_dropped(problem, {std::vector<bool>(4), {true}});
  CHECK(kept.problem.steps[3].reads == std::vector<int>{0, 2});
  CHECK(kept.extra_seconds == 0);
  CHECK(remade.problem.steps[3].reads == std::vector<int>{4, 2});
  CHECK(remade.remake == std::vector<bool>{false, false, true, false});
  CHECK(remade.extra_seconds == 0.25);
  check_sound(problem, remade);
}

TEST_CASE("alternatives of transformers: less memory for more time, down to a fraction") {
  for (const int layers : {1, 4, 12})
    for (const bool remakes : {false, true}) {
      const Problem memory =
          transformer({.layers = layers, .tokens = 1024, .dim = 256, .ffn = 512, .top_k = 2, .vocab = 1000});
      RecomputeProblem problem = with_times(memory, forward_steps(layers));
      if (remakes) add_remakes(problem, [] { return true; });
      const std::vector<Alternative> ways = recompute_alternatives(problem);
      REQUIRE(!ways.empty());
      CHECK(ways.front().extra_seconds == 0);
      for (size_t i = 1; i < ways.size(); ++i) {
        CHECK(ways[i].live_bytes < ways[i - 1].live_bytes);
        CHECK(ways[i].extra_seconds >= ways[i - 1].extra_seconds);
      }
      for (const Alternative& way : ways) check_sound(problem, repeat_dropped(problem, way.choice));
      if (layers == 12) CHECK(2 * ways.back().live_bytes < ways.front().live_bytes);
      CHECK(remakes == std::ranges::any_of(ways, [](const Alternative& way) {
              return std::ranges::count(way.choice.remade, true) > 0;
            }));
    }
}

TEST_CASE("a step that may not run again is never dropped") {
  RecomputeProblem problem = with_times(
      transformer({.layers = 4, .tokens = 1024, .dim = 256, .ffn = 512, .top_k = 2, .vocab = 1000}),
      forward_steps(4));
  for (size_t s = 0; s < problem.repeatable.size(); s += 2) problem.repeatable[s] = false;
  for (const Alternative& way : recompute_alternatives(problem))
    for (size_t s = 0; s < problem.repeatable.size(); ++s)
      CHECK((!way.choice.dropped[s] || problem.repeatable[s]));
}

}  // namespace
}  // namespace moec::planner
