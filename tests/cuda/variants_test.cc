// Every variant of every kernel, as a tuned plan chooses them: as exact as the kernel, the same bits every
// time and in every mode.
#include "kernels/cuda/variants.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "compiler/compile.h"
#include "kernels/catalog.h"
#include "kernels/cuda/cudnn/attention.h"
#include "kernels/cuda/hopper/grouped_linear.h"
#include "runtime/tuning/tuning.h"
#include "schema/plan_file.h"
#include "tests/cuda/gpu.h"
#include "tests/cuda/parity.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

namespace hopper = cuda::hopper;

using runtime::Execution;
using runtime::Session;

/// The most ways in which an instruction of the loaded plan can be computed; 0 where each has but one.
size_t most_variants(const runtime::Device& loaded) {
  size_t most = 0;
  for (const auto& program : loaded.plan().plan.programs)
    for (size_t i = 0; i < program->instructions.size(); ++i)
      most = std::max(most, must(loaded.variants(program->kind, i)).size());
  return most;
}

/// Tells every instruction that can be computed in more than `choice` ways to use that one. `loaded` holds
/// the plan as it was. Returns the kernels with the variants chosen.
std::set<std::string> choose_variants(fb::PlanT& plan, const runtime::Device& loaded, size_t choice) {
  std::set<std::string> chosen;
  plan.variants.clear();
  plan.tuned_for = loaded.model();
  for (const auto& program : plan.programs)
    for (size_t i = 0; i < program->instructions.size(); ++i) {
      const auto variants = must(loaded.variants(program->kind, i));
      if (choice >= variants.size()) continue;
      plan.variants.emplace_back(variants[choice]);
      program->instructions[i]->variant = static_cast<uint32_t>(plan.variants.size());
      chosen.insert(program->instructions[i]->kernel + " " + plan.variants.back());
    }
  return chosen;
}

/// Tells every instruction to use a variant that stores by plain instructions, which initcheck sees; it does
/// not see what TMA stores. Returns whether each instruction with variants has one.
bool choose_plain_variants(fb::PlanT& plan, const runtime::Device& loaded) {
  const auto is_plain = [](std::string_view name) {
    return name == "tiled" || name == "large" || name == "portable";
  };
  plan.variants.clear();
  plan.tuned_for = loaded.model();
  for (const auto& program : plan.programs)
    for (size_t i = 0; i < program->instructions.size(); ++i) {
      const auto variants = must(loaded.variants(program->kind, i));
      if (variants.empty()) continue;
      const auto plain = std::ranges::find_if(variants, is_plain);
      if (plain == variants.end()) return false;
      plan.variants.emplace_back(*plain);
      program->instructions[i]->variant = static_cast<uint32_t>(plan.variants.size());
    }
  return true;
}

/// Whether the sample calls a kernel with variants; asked without a GPU, which takes longer to set up.
bool has_variants(const Sample& sample, const Storage& storage) {
  const OpHarness harness(sample, storage.precision, runtime::make_cpu_device());
  return std::ranges::any_of(kernel_catalog(), [&](const KernelInfo& kernel) {
    return !kernel.variants.empty() && harness.runs(kernel.key);
  });
}

/// Calls check(harness) with the sample on every variant of its kernels; returns their names.
template <class Check>
std::set<std::string> for_each_variant(const Sample& sample, const Storage& storage,
                                       runtime::MemoryOptions memory, Check&& check) {
  std::set<std::string> seen;
  if (!has_variants(sample, storage)) return seen;
  const std::string name = sample.name;
  CAPTURE(name);
  CAPTURE(storage.name);
  const OpHarness chosen(sample, storage.precision, cuda_device());
  for (size_t choice = 0; choice < most_variants(chosen.device()); ++choice) {
    std::set<std::string> variants;
    OpHarness gpu(sample, storage.precision, cuda_device(), memory,
                  [&](fb::PlanT& plan) { variants = choose_variants(plan, chosen.device(), choice); });
    const std::string names = fmt::format("{}", fmt::join(variants, ", "));
    CAPTURE(names);
    check(gpu);
    seen.merge(variants);
  }
  return seen;
}

void run_variants(const Sample& sample, const Storage& storage) {
  for_each_variant(sample, storage, kUnset, check_finite);
}

std::vector<Sample> wide_samples() {
  std::vector<Sample> samples = wide_attention_samples();
  for (Sample& sample : wide_expert_samples()) samples.push_back(std::move(sample));
  return samples;
}

std::shared_ptr<const runtime::LoadedPlan> parsed(const fb::PlanT& plan) {
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  return must(runtime::parse_plan(std::string(bytes.begin(), bytes.end()), "tuned"));
}

Session session_of(const std::shared_ptr<const runtime::LoadedPlan>& plan, Execution execution) {
  Session session = must(Session::create(plan, cuda_device(execution), {.poison_activations = true}));
  must(session.initialise(11, plan->plan.recipe->lr));
  const auto vocab = static_cast<int32_t>(session.vocab_size());
  must(session.set_data(learnable_tokens(60'000, vocab, 1), learnable_tokens(10'000, vocab, 2)));
  return session;
}

fb::PlanT small_plan_of(const char* name, fb::DType dtype) {
  fb::ModelT model = example_model(name);
  model.recipe->dtype = dtype;
  model.recipe->batch_size = 4;
  model.recipe->seq_len = 64;
  model.recipe->grad_accum = 2;
  return compile(model, {.window_tokens = 1 << 16});
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("the device knows the variants of the catalog and no others") {
  std::set<std::string> catalog, device;
  for (const KernelInfo& kernel : kernel_catalog())
    for (const std::string& name : kernel.variants) {
      CAPTURE(name);
      CHECK(cuda::find_variant(kernel.key, name) != nullptr);
      catalog.insert(std::string(kernel.key) + " " + name);
    }
  for (const auto family :
       {cuda::linear_variants(), cuda::grouped_linear_variants(), cuda::grouped_linear_bwd_weight_variants(),
        cuda::attention_variants(), cuda::attention_bwd_variants()})
    for (const cuda::CudaVariant& variant : family)
      device.insert(std::string(variant.kernel) + " " + std::string(variant.name));
  CHECK(device == catalog);
}

TEST_CASE("every variant of every op's samples equals the reference") {
  std::set<std::string> seen;
  const auto check = [&](const Sample& sample, const Storage& storage) {
    seen.merge(for_each_variant(sample, storage, OpHarness::kPoisoned,
                                [&](OpHarness& gpu) { check_parity(gpu, sample, storage); }));
  };
  for (const Storage& storage : {kF64, kF32, kBf16, kBf16WithF32Gradients, kF16})
    for_each_sample([&](const Sample& sample) { check(sample, storage); });
  for (const Storage& storage : {kF32, kBf16, kBf16WithF32Gradients, kF16})
    for (const Sample& sample : wide_samples()) check(sample, storage);
  const bool has_cudnn = cuda::CudnnAttention().available() && hopper::available();
  for (const KernelInfo& kernel : kernel_catalog())
    for (const std::string& name : kernel.variants) {
      if (name.starts_with("hopper") && !hopper::available()) continue;
      if (name == "cudnn" && !has_cudnn) continue;
      CAPTURE(kernel.key);
      CAPTURE(name);
      CHECK(seen.contains(std::string(kernel.key) + " " + name));
    }
}

// Cases of their own, so that several processes can share them: racecheck takes minutes for all.
TEST_CASE("every variant runs on memory that nobody has written: ops in f32") {
  for_each_sample([](const Sample& sample) { run_variants(sample, kF32); });
}

TEST_CASE("every variant runs on memory that nobody has written: ops in bf16") {
  for_each_sample([](const Sample& sample) { run_variants(sample, kBf16); });
}

TEST_CASE("every variant runs on memory that nobody has written: attention of wide heads") {
  for (const Storage& storage : {kF32, kBf16})
    for (const Sample& sample : wide_attention_samples()) run_variants(sample, storage);
}

TEST_CASE("every variant runs on memory that nobody has written: experts of wide rows") {
  for (const Storage& storage : {kF32, kBf16})
    for (const Sample& sample : wide_expert_samples()) run_variants(sample, storage);
}

TEST_CASE("every op's samples run by plain stores on memory that nobody has written") {
  size_t run = 0;
  for (const Storage& storage : {kF32, kBf16, kF16})
    for_each_sample([&](const Sample& sample) {
      const OpHarness chosen(sample, storage.precision, cuda_device());
      bool plain = true;
      OpHarness gpu(sample, storage.precision, cuda_device(), kUnset,
                    [&](fb::PlanT& plan) { plain = choose_plain_variants(plan, chosen.device()); });
      if (!plain) return;  // products in f16 are cuBLAS'
      check_finite(gpu);
      ++run;
    });
  CHECK(run > 100);
}

TEST_CASE("whatever variants a plan chooses, all modes give the same bits") {
  for (const char* name : {"moe-tiny", "char-gpt"})
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16})
      for (size_t choice = 0; choice < 3; ++choice) {
        CAPTURE(name);
        CAPTURE(dtype);
        CAPTURE(choice);
        fb::PlanT plan = small_plan_of(name, dtype);
        const auto loaded = cuda_device();
        must(loaded->load(parsed(plan)));
        REQUIRE_FALSE(choose_variants(plan, *loaded, choice).empty());
        const auto tuned = parsed(plan);
        std::set<uint64_t> hashes;
        for (const Execution execution : {Execution::kEager, Execution::kSegmented, Execution::kWhole}) {
          Session session = session_of(tuned, execution);
          for (int step = 0; step < 10; ++step) must(session.train_step());
          CHECK(std::isfinite(must(session.read_metrics(9)).loss));
          hashes.insert(must(session.state_hash()));
        }
        CHECK(hashes.size() == 1);
      }
}

TEST_CASE("tuning times every variant, keeps what makes the step faster, for this device alone") {
  const fb::PlanT plan = small_plan_of("moe-tiny", fb::DType::BF16);
  const tuning::Lane lane = must(tuning::Lane::cuda());
  size_t timed = 0, tried = 0, kept = 0;
  const tuning::TuningObserver observer = {
      .on_call = [&](const tuning::TunedCall&) { ++timed; },
      .on_trial =
          [&](const tuning::TunedCall& call, double without, double with) {
            ++tried;
            kept += call.kept;
            if (call.kept) CHECK(with < without);
          }};
  const tuning::Tuning tuned = must(tuning::tune(parsed(plan), lane, observer));
  CHECK(timed == tuned.calls.size());
  CHECK(timed > 5);
  size_t faster = 0;
  for (const tuning::TunedCall& call : tuned.calls) {
    CAPTURE(call.kernel);
    CHECK(call.times.size() > 2);
    CHECK(call.times.front().variant.empty());
    for (const tuning::VariantTime& time : call.times)
      CHECK(time.seconds >= call.times[call.best].seconds * 0.98);
    faster += call.best != 0;
    for (const auto& [program, index] : call.instructions)
      for (const auto& candidate : tuned.plan.programs)
        if (candidate->kind == program)
          CHECK(runtime::variant_of(tuned.plan, *candidate->instructions[index]) ==
                (call.kept ? call.times[call.best].variant : ""));
  }
  CHECK(tried == faster);
  CHECK(tuned.plan.tuned_for == (kept > 0 ? must(lane.make_device())->model() : ""));
  must(cuda_device()->load(parsed(tuned.plan)));
  must(runtime::make_cpu_device()->load(parsed(tuned.plan)));
}

TEST_CASE("a variant that does not compute a call is refused when the plan is loaded") {
  fb::PlanT plan = small_plan_of("moe-tiny", fb::DType::F32);
  plan.variants = {"hopper"};
  const auto device = cuda_device();
  plan.tuned_for = device->model();
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions)
      if (instruction->kernel == "attention") instruction->variant = 1;
  const Status status = device->load(parsed(plan));
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().kind == ErrorKind::kInput);
  CHECK(status.error().message.find("'hopper' of attention does not compute this call") != std::string::npos);
  plan.tuned_for = "another device";
  must(cuda_device()->load(parsed(plan)));
}

TEST_SUITE_END();

}  // namespace moec::test
