// Steps in which experts get as much, twice as much or all that there is: correct, and one graph for all.
#include "bench/routing.h"

#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "runtime/lockstep.h"
#include "tests/cuda/gpu.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

using bench::Routing;
using runtime::Session;

constexpr Routing kRoutings[] = {Routing::kBalanced, Routing::kSkewed, Routing::kDegenerate};

fb::ModelT moe_tiny(fb::DType dtype) {
  fb::ModelT model = example_model("moe-tiny");
  set_experts(model, 8);
  model.recipe->dtype = dtype;
  return model;
}

/// A layer of the 6.9B model, with as few tokens of as small a vocabulary as a CPU takes in a second or two.
fb::ModelT one_large_layer() {
  fb::ModelT model = example_model("moe-6.9b");
  model.blocks[1]->repeat = 1;
  model.blocks[0]->nodes[0]->op.AsEmbedding()->vocab_size = 1024;
  model.blocks[2]->nodes[1]->op.AsLinear()->out_features = 1024;
  model.recipe->batch_size = 1;
  model.recipe->seq_len = 512;
  return model;
}

/// The forward and backward pass of both devices on tokens drawn at random.
void check_lockstep(const fb::ModelT& model, Routing routing) {
  CAPTURE(model.name);
  CAPTURE(bench::kRoutingNames[static_cast<size_t>(routing)]);
  Session cpu = must(host_batch_session(model, runtime::make_cpu_device()));
  must(bench::force_routing(cpu, routing));
  std::mt19937 random(3);
  std::vector<int32_t> tokens(static_cast<size_t>(cpu.batch_size() * cpu.seq_len()));
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(random() % static_cast<uint32_t>(cpu.vocab_size()));
  must(cpu.write_batch(tokens, tokens));
  Session gpu = must(host_batch_session(model, cuda_device()));
  must(runtime::run_lockstep(cpu.device(), gpu.device(), fb::ProgramKind::Accumulate,
                             [](const runtime::Comparison& comparison) {
                               CAPTURE(comparison.instruction->label);
                               CAPTURE(comparison.output);
                               CAPTURE(comparison.relative);
                               CHECK(comparison.agrees());
                               return Status();
                             }));
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("every routing: the devices agree on each instruction of moe-tiny") {
  for (const Routing routing : kRoutings)
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16, fb::DType::F16})
      check_lockstep(moe_tiny(dtype), routing);
}

TEST_CASE("every routing: the devices agree on each instruction of a layer of the 6.9B model") {
  for (const Routing routing : kRoutings) check_lockstep(one_large_layer(), routing);
}

TEST_CASE("one graph serves every routing, with the bits of eager execution") {
  for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16}) {
    Session eager = must(training_session(moe_tiny(dtype), cuda_device(runtime::Execution::kEager)));
    Session whole = must(training_session(moe_tiny(dtype), cuda_device()));
    for (int64_t step = 0; step < 12; ++step) {
      for (Session* session : {&eager, &whole}) {
        if (step % 4 == 0) must(bench::force_routing(*session, kRoutings[step / 4]));
        must(session->train_step());
      }
      CHECK(must(whole.read_metrics(step)).loss == must(eager.read_metrics(step)).loss);
    }
    CHECK(must(whole.state_hash()) == must(eager.state_hash()));
    CHECK(must(whole.read_metrics(11)).skipped_steps == 0);
  }
}

TEST_SUITE_END();

}  // namespace moec::test
