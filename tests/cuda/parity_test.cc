// Every op's samples on the GPU: as exact as the CPU device against f64, the same bits every time.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tests/cuda/gpu.h"
#include "tests/support/op_harness.h"

namespace moec::test {
namespace {

struct Storage {
  const char* name;
  Precision precision;
  /// Relative error that is rounding, whatever the CPU's is.
  double rounding;
};

constexpr Storage kF64{"f64", {fb::DType::F64, fb::DType::F64}, 1e-12};
constexpr Storage kF32{"f32", {fb::DType::F32, fb::DType::F32}, 1e-6};
constexpr Storage kBf16{"bf16", {fb::DType::BF16, fb::DType::BF16}, 4e-3};
constexpr Storage kBf16WithF32Gradients{"bf16, f32 gradients", {fb::DType::BF16, fb::DType::F32}, 4e-3};
constexpr Storage kF16{"f16", {fb::DType::F16, fb::DType::F16}, 5e-4};
constexpr Storage kF16WithF32Gradients{"f16, f32 gradients", {fb::DType::F16, fb::DType::F32}, 5e-4};

/// |a - b| / |b| in the Euclidean norm; NaN when either holds one.
double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-6);
}

/// The GPU errs at most three times as much as the CPU in the same precision, or by rounding.
void check_errors(const Tensors& gpu, const Tensors& cpu, const Tensors& reference, double rounding) {
  REQUIRE(gpu.size() == reference.size());
  for (const auto& [name, exact] : reference) {
    CAPTURE(name);
    const double bound = 3 * relative_error(cpu.at(name), exact) + rounding;
    CHECK(relative_error(gpu.at(name), exact) <= bound);
  }
}

void check_sample(const Sample& sample, const Storage& storage) {
  CAPTURE(sample.name);
  OpHarness gpu(sample, storage.precision, cuda_device());
  OpHarness cpu(sample, storage.precision, runtime::make_cpu_device());
  OpHarness exact(sample, kF64.precision, runtime::make_cpu_device());
  const Tensors values = gpu.rounded(gpu.random_values(5));
  const Tensors outputs = gpu.forward(values), gradients = gpu.backward(values);
  check_errors(outputs, cpu.forward(values), exact.forward(values), storage.rounding);
  check_errors(gradients, cpu.backward(values), exact.backward(values), storage.rounding);
  CHECK(gpu.forward(values) == outputs);
  CHECK(gpu.backward(values) == gradients);
}

template <class Check>
void for_each_sample(Check&& check) {
  for (const OpDef* def : op_table()) {
    CAPTURE(def->key);
    if (def->samples == nullptr) continue;
    for (const Sample& sample : def->samples()) check(sample);
  }
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("every op's samples equal the reference") {
  Storage storage = kF64;
  SUBCASE("f64") { storage = kF64; }
  SUBCASE("f32") { storage = kF32; }
  SUBCASE("bf16") { storage = kBf16; }
  SUBCASE("bf16 with f32 gradients") { storage = kBf16WithF32Gradients; }
  SUBCASE("f16") { storage = kF16; }
  SUBCASE("f16 with f32 gradients") { storage = kF16WithF32Gradients; }
  CAPTURE(storage.name);
  for_each_sample([&](const Sample& sample) { check_sample(sample, storage); });
}

/// Problems too large for central differences: heads that the tensor cores' kernels take whole, over several
/// tiles, ragged, with groups that do and do not divide a tile.
std::vector<Sample> wide_attention_samples() {
  const auto sample = [](const char* name, int64_t batch, int64_t seq, int heads, int kv_heads, int dim) {
    return Sample{name,
                  {{"x", {batch, seq, (heads + 2 * kv_heads) * dim}}},
                  fmt::format(R"([{{name: "y", inputs: ["x"], op_type: "Attention",
                    op: {{heads: {}, kv_heads: {}, head_dim: {}}}}}])",
                              heads, kv_heads, dim)};
  };
  return {sample("one position", 2, 1, 12, 1, 64),
          sample("MQA", 2, 200, 12, 1, 64),
          sample("GQA", 1, 131, 14, 2, 64),
          sample("MHA", 3, 259, 2, 2, 64),
          sample("GQA, wide heads", 2, 197, 6, 2, 128),
          sample("short, whole tiles", 2, 64, 4, 4, 32),
          sample("short GQA", 3, 50, 6, 2, 32)};
}

TEST_CASE("attention of wide heads equals the reference") {
  for (const Storage& storage : {kF32, kBf16})
    for (const Sample& sample : wide_attention_samples()) check_sample(sample, storage);
}

/// For the memory checkers: activations as allocated, which a NaN could not tell from what a kernel wrote.
TEST_CASE("every op's samples run on memory that nobody has written") {
  for (const Storage& storage : {kF32, kBf16, kF16})
    for_each_sample([&](const Sample& sample) {
      OpHarness gpu(sample, storage.precision, cuda_device(), {.leave_activations_unset = true});
      const Tensors values = gpu.rounded(gpu.random_values(5));
      for (const Tensors& tensors : {gpu.forward(values), gpu.backward(values)})
        for (const auto& [name, numbers] : tensors) {
          CAPTURE(name);
          CHECK(std::all_of(numbers.begin(), numbers.end(), [](double x) { return std::isfinite(x); }));
        }
    });
}

TEST_SUITE_END();

}  // namespace moec::test
