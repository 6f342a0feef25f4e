// Memory budgets: peaks follow the budget, losses do not change by a bit, and what cannot fit says why.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "compiler/compile.h"
#include "compiler/fit.h"
#include "kernels/beside.h"
#include "kernels/catalog.h"
#include "runtime/device.h"
#include "tests/support/must.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

constexpr const char* kExamples[] = {"char-gpt", "char-moe", "gpt2-124m",
                                     "moe-6.9b", "moe-tiny", "qwen2.5-0.5b"};

uint64_t all_arenas(const fb::PlanT& plan) {
  return std::accumulate(plan.arenas.begin(), plan.arenas.end(), uint64_t{0},
                         [](uint64_t sum, const auto& arena) { return sum + arena->size; });
}

uint64_t activations(const fb::PlanT& plan) {
  for (const auto& arena : plan.arenas)
    if (arena->kind == fb::ArenaKind::Activations) return arena->size;
  return 0;
}

int recomputed(const fb::PlanT& plan) {
  int count = 0;
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions) {
      count += instruction->recompute;
      CHECK(instruction->recompute == instruction->label.ends_with(".recompute"));
    }
  return count;
}

/// Activations that backward products make again.
int remade(const fb::PlanT& plan) {
  int count = 0;
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions)
      count += instruction->kernel == "grouped_linear_bwd_input_swiglu" && instruction->outputs.back() != -1;
  return count;
}

fb::PlanT compile_within(fb::ModelT model, uint64_t budget) {
  model.recipe->memory_budget = budget;
  return compile(model);
}

/// How many instructions behind a gradient of experts at least leave the activations alone that it
/// reads.
uint32_t least_lag(const fb::PlanT& plan) {
  const auto buffer_of = [&](int32_t tensor) -> const fb::BufferT& {
    return *plan.buffers.at(plan.tensors.at(static_cast<size_t>(tensor))->buffer);
  };
  uint32_t least = UINT32_MAX;
  for (const auto& program : plan.programs)
    for (uint32_t i = 0; i < program->instructions.size(); ++i) {
      const fb::InstructionT& gradient = *program->instructions[i];
      if (!is_large_call_beside(gradient.kernel, static_cast<double>(gradient.flops),
                                static_cast<double>(gradient.bytes)))
        continue;
      for (uint32_t j = i + 1; j < program->instructions.size(); ++j)
        for (const int32_t input : gradient.inputs)
          for (const int32_t output : program->instructions[j]->outputs) {
            if (input < 0 || output < 0) continue;
            const fb::BufferT &read = buffer_of(input), &written = buffer_of(output);
            if (read.arena == fb::ArenaKind::Activations && written.arena == read.arena &&
                read.offset < written.offset + written.size && written.offset < read.offset + read.size)
              least = std::min(least, j - i - 1);
          }
    }
  return least;
}

/// An example with at most three of each block, all widths an eighth and two sequences of sixteen tokens.
fb::ModelT scaled_down(const std::string& name) {
  constexpr uint32_t kFactor = 8;
  fb::ModelT model = example_model(name);
  const auto shrink = [](uint32_t& width) { width /= kFactor; };
  for (const auto& block : model.blocks) {
    block->repeat = std::min(block->repeat, 3u);
    for (const auto& node : block->nodes) {
      fb::OpUnion& op = node->op;
      if (auto* embedding = op.AsEmbedding()) shrink(embedding->vocab_size), shrink(embedding->dim);
      if (auto* linear = op.AsLinear(); linear && !linear->full_precision) shrink(linear->out_features);
      if (auto* grouped = op.AsGroupedLinear()) shrink(grouped->out_features);
      if (auto* rope = op.AsRope()) shrink(rope->head_dim);
      if (auto* attention = op.AsAttention()) shrink(attention->head_dim);
    }
  }
  model.recipe->batch_size = 2;
  model.recipe->seq_len = 16;
  model.recipe->grad_accum = 2;
  return model;
}

/// What five steps of training come to.
struct Run {
  std::vector<double> losses;
  uint64_t state = 0;
  bool operator==(const Run&) const = default;
};

Run train(const fb::ModelT& model) {
  constexpr int kSteps = 5;
  runtime::Session session = must(training_session(model, runtime::make_cpu_device()));
  Run run;
  for (int step = 0; step < kSteps; ++step) {
    must(session.train_step());
    run.losses.push_back(must(session.read_metrics(step)).loss);
  }
  run.state = must(session.state_hash());
  return run;
}

}  // namespace

TEST_CASE("a smaller budget never yields a larger peak, and every plan under a budget is sound") {
  for (const char* name : kExamples) {
    CAPTURE(std::string(name));
    const fb::ModelT model = example_model(name);
    const std::vector<FrontierPoint> points = frontier(model);
    const uint64_t most = points.front().bytes, least = points.back().bytes;
    // Without a budget small calls may run beside others, which takes a little more.
    const uint64_t without = fastest_within(UINT64_MAX, false, model)->bytes;
    CHECK(without <= most);
    CHECK(all_arenas(compile(model)) >= without);
    CHECK(all_arenas(compile(model)) <= without + without / 5);
    uint64_t before = most;
    constexpr int kBudgets = 5;
    for (int i = 0; i <= kBudgets; ++i) {
      const uint64_t budget = most - (most - least) * static_cast<uint64_t>(i) / kBudgets;
      const fb::PlanT plan = compile_within(model, budget);  // validates the plan
      CHECK(all_arenas(plan) <= std::min(budget, before));
      CHECK((recomputed(plan) + remade(plan) > 0) == (all_arenas(plan) < most));
      before = all_arenas(plan);
    }
    CHECK(before == least);
    CHECK_THROWS_AS(compile_within(model, least - 1), MemoryError);
  }
}

TEST_CASE("memory that a budget leaves lets gradients of experts lag") {
  fb::ModelT model = example_model("moe-6.9b");
  model.blocks.at(1)->repeat = 2;
  const uint64_t everything = frontier(model).front().bytes;
  CHECK(least_lag(compile_within(model, everything)) == 0);
  const fb::PlanT plan = compile_within(model, 2 * everything);
  CHECK(least_lag(plan) >= 6);
  CHECK(all_arenas(plan) <= 2 * everything);
}

TEST_CASE("the frontier falls in bytes and rises in time") {
  for (const char* name : kExamples) {
    CAPTURE(std::string(name));
    const std::vector<FrontierPoint> points = frontier(example_model(name));
    CHECK(points.front().recomputed + points.front().remade == 0);
    for (size_t i = 1; i < points.size(); ++i) {
      CHECK(points[i].bytes < points[i - 1].bytes);
      CHECK(points[i].seconds > points[i - 1].seconds);
      CHECK(points[i].recomputed + points[i].remade > 0);
    }
  }
}

TEST_CASE("gpt2-124m fits a third of its activations") {
  const fb::ModelT model = example_model("gpt2-124m");
  const fb::PlanT plan = compile(model);
  const uint64_t all = activations(plan), kept = all_arenas(plan) - all;
  CHECK(activations(compile_within(model, kept + all * 35 / 100)) <= all * 35 / 100);
}

TEST_CASE("the 6.9B model fits 139 GiB at 32,768 tokens") {
  fb::ModelT model = example_model("moe-6.9b");
  model.recipe->batch_size = 1;
  model.recipe->seq_len = 32768;
  const uint64_t budget = uint64_t{139} << 30;
  CHECK(all_arenas(compile_within(model, budget)) <= budget);
}

TEST_CASE(
    "4 x 4,096 tokens of the 6.9B model fit 139 GiB, which has room for most of the experts' activations") {
  fb::ModelT model = example_model("moe-6.9b");
  model.recipe->batch_size = 4;
  model.recipe->grad_dtype = model.recipe->dtype;
  model.recipe->moment_dtype = fb::DType::BF16;
  const uint64_t budget = uint64_t{139} << 30;
  const fb::PlanT without = compile(model), within = compile_within(model, budget);
  CHECK(all_arenas(without) < all_arenas(within));
  CHECK(all_arenas(within) <= budget);
  CHECK(remade(without) == 30);
  CHECK(remade(within) < 15);
  CHECK(recomputed(without) == 0);
  CHECK(fastest_within(budget, true, model)->seconds < fastest_within(budget, false, model)->seconds);
}

TEST_CASE("five steps give the same bits under every budget") {
  for (const char* name : kExamples)
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16}) {
      CAPTURE(std::string(name));
      fb::ModelT model = scaled_down(name);
      model.recipe->dtype = dtype;
      const Run expected = train(model);
      const std::vector<FrontierPoint> points = frontier(model);
      REQUIRE(points.size() > 2);
      for (const size_t i :
           {size_t{0}, points.size() / 4, points.size() / 2, 3 * points.size() / 4, points.size() - 1}) {
        model.recipe->memory_budget = points[i].bytes;
        CHECK(train(model) == expected);
      }
    }
}

TEST_CASE("a budget that is too small says what is missing and what is live at the peak") {
  const fb::ModelT model = example_model("gpt2-124m");
  const uint64_t least = frontier(model).back().bytes;
  try {
    compile_within(model, least / 2);
    FAIL("fits");
  } catch (const MemoryError& error) {
    CHECK(error.shortage.budget == least / 2);
    CHECK(error.shortage.least == least);
    CHECK(error.shortage.persistent < least);
    REQUIRE(!error.shortage.at_peak.empty());
    CHECK(find_kernel(error.shortage.at_peak.front().kernel) != nullptr);
    CHECK(error.shortage.at_peak.front().node.find('.') != std::string::npos);
    CHECK(std::ranges::is_sorted(error.shortage.at_peak, std::ranges::greater{}, &LiveBuffer::bytes));
  }
}

TEST_CASE("the largest batch and sequence that fit, and not one more") {
  constexpr uint64_t kBudget = uint64_t{64} << 20;
  fb::ModelT model = example_model("moe-tiny");
  for (const bool recompute : {false, true}) {
    CAPTURE(recompute);
    const auto fits = [&](uint32_t batch_size, uint32_t seq_len) {
      fb::ModelT changed(model);
      changed.recipe->batch_size = batch_size;
      changed.recipe->seq_len = seq_len;
      return fastest_within(kBudget, recompute, changed).has_value();
    };
    const uint32_t seq_len = model.recipe->seq_len, batch = largest_batch_size(model, kBudget, recompute);
    CHECK(batch > 1);
    CHECK(fits(batch, seq_len));
    CHECK_FALSE(fits(batch + 1, seq_len));
    CHECK(largest_seq_len(model, kBudget, recompute) >= seq_len);
  }
  CHECK(largest_batch_size(model, kBudget, true) > largest_batch_size(model, kBudget, false));
  CHECK(largest_batch_size(model, 1 << 20, true) == 0);
  CHECK(largest_seq_len(model, 1 << 20, true) == 0);
}

TEST_CASE("the order of instructions saves memory") {
  int saved = 0;
  for (const char* name : kExamples) saved += compile(example_model(name)).saved_by_order > 0;
  CHECK(saved > 0);
}

}  // namespace moec::test
