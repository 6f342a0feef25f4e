// Attention by cuDNN: which calls it takes, and a model that is told to use it. Its values are tested with
// those of all variants.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <vector>

#include "compiler/compile.h"
#include "kernels/cuda/cudnn/attention.h"
#include "kernels/cuda/hopper/grouped_linear.h"
#include "kernels/cuda/variants.h"
#include "schema/plan_file.h"
#include "tests/cuda/gpu.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

using cuda::AttentionPass;
using runtime::Execution;
using runtime::Session;

/// Calls of attention, of which nothing but types and shapes is looked at.
class Calls {
 public:
  Calls(fb::DType dtype, int64_t seq, uint32_t head_dim) {
    attrs_.heads = 12;
    attrs_.kv_heads = 1;
    attrs_.head_dim = head_dim;
    op_.type = fb::Op::Attention;
    op_.value = &attrs_;
    TensorView qkv;
    qkv.dtype = dtype;
    qkv.rank = 3;
    qkv.shape = {1, seq, 14 * head_dim};
    forward_ = {.inputs = {qkv}, .outputs = {{}, {}}, .workspace = {}, .op = &op_};
    backward_ = {.inputs = {{}, qkv, {}, {}}, .outputs = {{}}, .workspace = {}, .op = &op_};
  }
  Calls(const Calls&) = delete;
  ~Calls() { op_.value = nullptr; }

  const KernelCall& operator[](AttentionPass pass) const {
    return pass == AttentionPass::kForward ? forward_ : backward_;
  }

 private:
  fb::AttentionT attrs_;
  fb::OpUnion op_;
  KernelCall forward_, backward_;
};

constexpr AttentionPass kPasses[] = {AttentionPass::kForward, AttentionPass::kBackward};

/// The first two layers of a model whose heads have 64 elements, with cuDNN's attention.
std::shared_ptr<const runtime::LoadedPlan> plan_with_cudnn(std::string_view device_model) {
  fb::ModelT model = example_model("gpt2-124m");
  for (const auto& block : model.blocks) block->repeat = std::min(2u, block->repeat);
  model.recipe->dtype = fb::DType::BF16;
  model.recipe->batch_size = 2;
  model.recipe->seq_len = 200;
  model.recipe->grad_accum = 2;
  fb::PlanT plan = compile(model, {.window_tokens = 1 << 16});
  plan.variants = {"cudnn"};
  plan.tuned_for = device_model;
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions)
      instruction->variant = instruction->kernel.starts_with("attention") ? 1 : 0;
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  return must(runtime::parse_plan(std::string(bytes.begin(), bytes.end()), "cudnn"));
}

}  // namespace

TEST_CASE("without cuDNN, its variants compute nothing") {
  const Calls calls(fb::DType::BF16, 128, 64);
  for (const AttentionPass pass : kPasses) {
    const char* kernel = pass == AttentionPass::kForward ? "attention" : "attention_bwd";
    const auto* variant = cuda::find_variant(kernel, "cudnn");
    REQUIRE(variant != nullptr);
    CHECK_FALSE(variant->computes(calls[pass], {}));
    if (runtime::cuda_available().ok()) continue;
    cuda::CudnnAttention cudnn;
    CHECK_FALSE(cudnn.available());
    CHECK_FALSE(cudnn.computes(pass, calls[pass]));
    CHECK(cudnn.workspace_bytes() == 0);
    CHECK(cudnn.run(pass, calls[pass], {}) == cudaErrorNotSupported);
  }
}

TEST_SUITE_BEGIN("gpu");

TEST_CASE("cuDNN computes no other types, widths or lengths, and no gradient that does not fit in memory") {
  cuda::CudnnAttention cudnn;
  for (const AttentionPass pass : kPasses) {
    CHECK_FALSE(cudnn.computes(pass, Calls(fb::DType::F32, 128, 64)[pass]));
    CHECK_FALSE(cudnn.computes(pass, Calls(fb::DType::BF16, 128, 32)[pass]));
    CHECK_FALSE(cudnn.computes(pass, Calls(fb::DType::BF16, 1, 64)[pass]));
    CHECK_FALSE(cudnn.computes(pass, Calls(fb::DType::BF16, 0, 64)[pass]));
  }
  const Calls long_sequence(fb::DType::BF16, 1 << 18, 64);
  CHECK_FALSE(cudnn.computes(AttentionPass::kBackward, long_sequence[AttentionPass::kBackward]));
}

TEST_CASE("with cuDNN's attention, all modes give the same bits") {
  if (!cuda::CudnnAttention().available() || !cuda::hopper::available()) return;
  const auto plan = plan_with_cudnn(cuda_device()->model());
  std::set<uint64_t> hashes;
  for (const Execution execution : {Execution::kEager, Execution::kSegmented, Execution::kWhole}) {
    Session session = must(Session::create(plan, cuda_device(execution), {.poison_activations = true}));
    const auto uses = must(session.device().memory_use());
    CHECK(std::ranges::count(uses, "cuDNN", &runtime::MemoryUse::what) == 1);
    must(session.initialise(11, plan->plan.recipe->lr));
    const auto vocab = static_cast<int32_t>(session.vocab_size());
    must(session.set_data(learnable_tokens(60'000, vocab, 1), learnable_tokens(10'000, vocab, 2)));
    for (int step = 0; step < 5; ++step) must(session.train_step());
    CHECK(std::isfinite(must(session.read_metrics(4)).loss));
    hashes.insert(must(session.state_hash()));
  }
  CHECK(hashes.size() == 1);
}

TEST_SUITE_END();

}  // namespace moec::test
