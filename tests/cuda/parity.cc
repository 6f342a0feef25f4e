#include "tests/cuda/parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/device.h"
#include "tests/support/relative_error.h"

namespace moec::test {
namespace {

/// The GPU errs at most three times as much as the CPU in the same precision, or by rounding.
void check_errors(const Tensors& gpu, const Tensors& cpu, const Tensors& reference, double rounding) {
  REQUIRE(gpu.size() == reference.size());
  for (const auto& [name, exact] : reference) {
    CAPTURE(name);
    constexpr double kLeast = 1e-6;
    const double bound = 3 * relative_error(cpu.at(name), exact, kLeast) + rounding;
    CHECK(relative_error(gpu.at(name), exact, kLeast) <= bound);
  }
}

}  // namespace

void check_parity(OpHarness& gpu, const Sample& sample, const Storage& storage) {
  OpHarness cpu(sample, storage.precision, runtime::make_cpu_device());
  OpHarness exact(sample, kF64.precision, runtime::make_cpu_device());
  const Tensors values = gpu.rounded(gpu.random_values(5));
  const Tensors outputs = gpu.forward(values), gradients = gpu.backward(values);
  check_errors(outputs, cpu.forward(values), exact.forward(values), storage.rounding);
  check_errors(gradients, cpu.backward(values), exact.backward(values), storage.rounding);
  CHECK(gpu.forward(values) == outputs);
  CHECK(gpu.backward(values) == gradients);
}

void check_finite(OpHarness& gpu) {
  const Tensors values = gpu.rounded(gpu.random_values(5));
  for (const Tensors& tensors : {gpu.forward(values), gpu.backward(values)})
    for (const auto& [name, numbers] : tensors) {
      CAPTURE(name);
      CHECK(std::all_of(numbers.begin(), numbers.end(), [](double x) { return std::isfinite(x); }));
    }
}

std::vector<Sample> wide_attention_samples() {
  const auto sample = [](const char* name, int64_t batch, int64_t seq, int heads, int kv_heads, int dim) {
    return Sample{name,
                  {{"x", {batch, seq, (heads + 2 * kv_heads) * dim}}},
                  fmt::format(R"([{{name: "y", inputs: ["x"], op_type: "Attention",
                    op: {{heads: {}, kv_heads: {}, head_dim: {}}}}}])",
                              heads, kv_heads, dim)};
  };
  const auto rotated = [](const char* name, std::vector<int64_t> shape, int heads, int kv_heads, int dim,
                          const char* style) {
    return Sample{
        name,
        {{"x", std::move(shape)}},
        fmt::format(R"([
      {{name: "qkv", inputs: ["x"], op_type: "Linear", op: {{out_features: {}, init_std: 0.2}}}},
      {{name: "rope", inputs: ["qkv"], op_type: "Rope",
        op: {{heads: {}, kv_heads: {}, head_dim: {}, style: "{}"}}}},
      {{name: "y", inputs: ["rope"], op_type: "Attention", op: {{heads: {}, kv_heads: {}, head_dim: {}}}}}])",
                    (heads + 2 * kv_heads) * dim, heads, kv_heads, dim, style, heads, kv_heads, dim)};
  };
  return {rotated("RoPE of neighbours, MQA", {2, 200, 24}, 12, 1, 64, "Interleaved"),
          rotated("RoPE of halves, GQA", {1, 131, 24}, 6, 2, 64, "Half"),
          rotated("RoPE of neighbours, wide heads", {3, 70, 16}, 2, 2, 128, "Interleaved"),
          rotated("RoPE of halves, wide heads", {1, 197, 24}, 3, 1, 128, "Half"),
          sample("one position", 2, 1, 12, 1, 64),
          sample("MQA", 2, 200, 12, 1, 64),
          sample("GQA", 1, 131, 14, 2, 64),
          sample("MHA", 3, 259, 2, 2, 64),
          sample("GQA, wide heads", 2, 197, 6, 2, 128),
          sample("MHA, more tiles than processors", 132, 20, 2, 2, 64),
          {"MQA, maxima that grow",
           {{"x", {1, 600, 8}}},
           R"([{name: "qkv", inputs: ["x"], op_type: "Linear", op: {out_features: 384, init_std: 1}},
               {name: "y", inputs: ["qkv"], op_type: "Attention", op: {heads: 4, kv_heads: 1, head_dim: 64}}])"},
          sample("short, whole tiles", 2, 64, 4, 4, 32),
          sample("short GQA", 3, 50, 6, 2, 32),
          sample("short MQA, wide heads", 2, 63, 4, 1, 64),
          sample("short, one position more than two tiles", 2, 33, 2, 2, 16),
          sample("short GQA, heads of no whole vectors", 3, 7, 4, 2, 20)};
}

std::vector<Sample> wide_expert_samples() {
  const auto sample = [](const char* name, int64_t tokens, int top_k, Fill fill, bool keeps) {
    return Sample{name,
                  {{"x", {tokens * top_k, 64}}, {"experts", {tokens, top_k}, fill, 4}},
                  R"([
    {name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {experts: 4}},
    {name: "gate_up", inputs: ["x", "index.offsets"], op_type: "GroupedLinear",
     op: {experts: 4, out_features: 272, init_std: 0.1}},
    {name: "swiglu", inputs: ["gate_up"], op_type: "Swiglu", op: {}},
    {name: "down", inputs: ["swiglu", "index.offsets"], op_type: "GroupedLinear",
     op: {experts: 4, out_features: 72, init_std: 0.1}},
    {name: "y", inputs: ["down", "index.offsets"], op_type: "GroupedLinear",
     op: {experts: 4, out_features: 40, init_std: 0.1}}])",
                  keeps};
  };
  return {sample("ragged", 333, 2, Fill::kDistinctExperts, false),
          sample("all on the same", 150, 1, Fill::kOneExpert, false),
          sample("ragged, the activation kept", 333, 2, Fill::kDistinctExperts, true)};
}

}  // namespace moec::test
