// Writes what the GPU's kernels make of random inputs, for tests/oracle/kernel_errors.py to hold against
// PyTorch:
//
//   MOEC_VALUES=DIR test_cuda --no-skip -tc="kernel values"
//
// One file DIR/<case>.<dtype>.safetensors each: the inputs, parameters and output gradients ("in.", "seed:",
// f64 numbers that the dtype holds exactly), outputs and gradients ("out.", "grad.").
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>

#include "runtime/safetensors.h"
#include "tests/cuda/gpu.h"
#include "tests/support/op_harness.h"

namespace moec::test {
namespace {

/// First nodes of layers with experts.
constexpr const char* kIndex =
    R"({name: "index", inputs: ["experts"], op_type: "ExpertIndex", op: {experts: 5}})";
constexpr const char* kRouted =
    R"({name: "router", inputs: ["logits"], op_type: "Router", op: {top_k: 2}},
       {name: "index", inputs: ["router.experts"], op_type: "ExpertIndex", op: {experts: 5}})";
constexpr const char* kLogits =
    R"({name: "logits", inputs: ["x"], op_type: "Linear", op: {out_features: 5, full_precision: true}})";

std::vector<Sample> layers() {
  return {
      {"linear",
       {{"x", {320, 768}}},
       R"([{name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 512, bias: true}}])"},
      {"linear-4096",
       {{"x", {136, 4096}}},
       R"([{name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 1032}}])"},
      {"linear-ragged",
       {{"x", {130, 333}}},
       R"([{name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 77, bias: true}}])"},
      {"linear_full",
       {{"x", {512, 768}}},
       R"([{name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 16, full_precision: true}}])"},
      {"mlp",
       {{"x", {256, 192}}},
       R"([{name: "up", inputs: ["x"], op_type: "Linear", op: {out_features: 768, bias: true}},
           {name: "a", inputs: ["up"], op_type: "Gelu", op: {}},
           {name: "y", inputs: ["a"], op_type: "Linear", op: {out_features: 192, bias: true}}])"},
      {"linear_cross_entropy",
       {{"x", {600, 256}}, {"targets", {600}, Fill::kTargets, 1003}},
       R"([{name: "logits", inputs: ["x"], op_type: "Linear", op: {out_features: 1003}},
           {name: "y", inputs: ["logits", "targets"], op_type: "CrossEntropy", op: {}}])"},
      {"position_embedding",
       {{"x", {3, 128, 256}}},
       R"([{name: "y", inputs: ["x"], op_type: "PositionEmbedding", op: {context: 200}}])"},
      {"rope",
       {{"x", {2, 256, 14 * 64}}},
       R"([{name: "y", inputs: ["x"], op_type: "Rope", op: {heads: 10, kv_heads: 2, head_dim: 64}}])"},
      {"rope_half",
       {{"x", {2, 256, 14 * 64}}},
       R"([{name: "y", inputs: ["x"], op_type: "Rope",
            op: {heads: 10, kv_heads: 2, head_dim: 64, style: "Half"}}])"},
      {"attention-12-1-64",
       {{"x", {2, 320, 14 * 64}}},
       R"([{name: "y", inputs: ["x"], op_type: "Attention", op: {heads: 12, kv_heads: 1, head_dim: 64}}])"},
      {"attention-4-4-128",
       {{"x", {1, 333, 12 * 128}}},
       R"([{name: "y", inputs: ["x"], op_type: "Attention", op: {heads: 4, kv_heads: 4, head_dim: 128}}])"},
      {"attention-6-6-32",
       {{"x", {4, 64, 18 * 32}}},
       R"([{name: "y", inputs: ["x"], op_type: "Attention", op: {heads: 6, kv_heads: 6, head_dim: 32}}])"},
      {"attention-4-2-16",
       {{"x", {2, 128, 8 * 16}}},
       R"([{name: "y", inputs: ["x"], op_type: "Attention", op: {heads: 4, kv_heads: 2, head_dim: 16}}])"},
  };
}

std::vector<Sample> experts() {
  const auto nodes = [](const char* first, const char* others) {
    return fmt::format("[{}, {}]", first, others);
  };
  const SampleInput chosen = {"experts", {300, 2}, Fill::kDistinctExperts, 5};
  return {
      {"grouped_linear",
       {{"x", {600, 256}}, chosen},
       nodes(kIndex, R"({name: "y", inputs: ["x", "index.offsets"], op_type: "GroupedLinear",
                         op: {experts: 5, out_features: 192}})")},
      {"grouped_swiglu",
       {{"x", {600, 256}}, chosen},
       nodes(kIndex, R"({name: "gate_up", inputs: ["x", "index.offsets"], op_type: "GroupedLinear",
                         op: {experts: 5, out_features: 384}},
                        {name: "a", inputs: ["gate_up"], op_type: "Swiglu", op: {}},
                        {name: "y", inputs: ["a", "index.offsets"], op_type: "GroupedLinear",
                         op: {experts: 5, out_features: 256}})")},
      {"dispatch",
       {{"x", {300, 256}}, chosen},
       nodes(kIndex, R"({name: "y", inputs: ["x", "index.permutation", "index.inverse"], op_type: "Dispatch",
                         op: {}})")},
      {"combine",
       {{"rows", {600, 256}}, {"weights", {300, 2}}, chosen},
       nodes(kIndex, R"({name: "y", inputs: ["rows", "weights", "index.inverse", "index.permutation"],
                         op_type: "Combine", op: {}})")},
      {"moe",
       {{"x", {300, 256}}, {"logits", {300, 5}}},
       nodes(kRouted, R"({name: "dispatch", inputs: ["x", "index.permutation", "index.inverse"],
                          op_type: "Dispatch", op: {}},
                         {name: "rows", inputs: ["dispatch", "index.offsets"], op_type: "GroupedLinear",
                          op: {experts: 5, out_features: 192}},
                         {name: "y", inputs: ["rows", "router.weights", "index.inverse", "index.permutation"],
                          op_type: "Combine", op: {}})")},
      {"aux_loss",
       {{"x", {300, 256}}},
       fmt::format("[{}, {}, {}]", kLogits, kRouted,
                   R"({name: "y", inputs: ["router.probs", "index.offsets"], op_type: "AuxLoss",
                       op: {coefficient: 0.5}})")},
      {"router_z_loss",
       {{"x", {300, 256}}},
       nodes(kLogits, R"({name: "y", inputs: ["logits"], op_type: "RouterZLoss", op: {coefficient: 0.5}})")},
  };
}

/// At sizes of small models: whole and ragged vectors, rows for a warp and for a block.
std::vector<Sample> rows_and_elements() {
  const auto norm = [](const char* name, const char* op, int64_t cols) {
    return Sample{name, {{"x", {1024, cols}}}, fmt::format(R"([{{name: "y", inputs: ["x"], {}}}])", op)};
  };
  const auto add_norm = [](const char* name, const char* op) {
    return Sample{name,
                  {{"a", {1024, 768}}, {"b", {1024, 768}}},
                  fmt::format(R"([{{name: "sum", inputs: ["a", "b"], op_type: "Add", op: {{}}}},
                                  {{name: "norm", inputs: ["sum"], {}}},
                                  {{name: "y", inputs: ["sum", "norm"], op_type: "Mul", op: {{}}}}])",
                              op)};
  };
  const auto map = [](const char* name, const char* op) {
    return Sample{name, {{"x", {512, 1536}}}, fmt::format(R"([{{name: "y", inputs: ["x"], {}}}])", op)};
  };
  return {
      norm("rmsnorm", R"(op_type: "RmsNorm", op: {})", 768),
      norm("rmsnorm-4096", R"(op_type: "RmsNorm", op: {})", 4096),
      norm("layernorm", R"(op_type: "LayerNorm", op: {})", 768),
      norm("layernorm-1600", R"(op_type: "LayerNorm", op: {})", 1600),
      norm("layernorm-300", R"(op_type: "LayerNorm", op: {})", 300),
      add_norm("add_rmsnorm", R"(op_type: "RmsNorm", op: {})"),
      add_norm("add_layernorm", R"(op_type: "LayerNorm", op: {})"),
      map("softmax", R"(op_type: "Softmax", op: {})"),
      map("silu", R"(op_type: "Silu", op: {})"),
      map("gelu", R"(op_type: "Gelu", op: {})"),
      map("gelu_tanh", R"(op_type: "Gelu", op: {tanh: true})"),
      map("swiglu", R"(op_type: "Swiglu", op: {})"),
      map("scale", R"(op_type: "Scale", op: {factor: 0.37})"),
      {"add",
       {{"a", {512, 1536}}, {"b", {512, 1536}}},
       R"([{name: "y", inputs: ["a", "b"], op_type: "Add", op: {}}])"},
      {"mul",
       {{"a", {512, 1536}}, {"b", {512, 1536}}},
       R"([{name: "y", inputs: ["a", "b"], op_type: "Mul", op: {}}])"},
      {"cross_entropy",
       {{"x", {512, 5003}}, {"targets", {512}, Fill::kTargets, 5003}},
       R"([{name: "y", inputs: ["x", "targets"], op_type: "CrossEntropy", op: {}}])"},
      {"embedding",
       {{"tokens", {4, 512}, Fill::kTokens, 200}},
       R"([{name: "y", inputs: ["tokens"], op_type: "Embedding", op: {vocab_size: 200, dim: 256}}])"},
  };
}

class File {
 public:
  void add(const std::string& name, const std::vector<uint64_t>& shape, const std::vector<double>& values) {
    const std::span<const std::byte> bytes = std::as_bytes(std::span(values));
    tensors_.push_back({{name, fb::DType::F64, shape}, {bytes.begin(), bytes.end()}});
  }
  void write(const std::string& path) const {
    std::vector<runtime::TensorInfo> infos;
    for (const runtime::HostTensor& tensor : tensors_) infos.push_back(tensor.info);
    must(runtime::write_safetensors(path, infos,
                                    [this](size_t i) -> Result<runtime::HostTensor> { return tensors_[i]; }));
  }

 private:
  std::vector<runtime::HostTensor> tensors_;
};

void run_case(const Sample& sample, const std::string& dtype_text, Precision precision,
              const std::string& dir) {
  constexpr uint64_t kSeed = 11;
  OpHarness gpu(sample, precision, cuda_device());
  const Tensors values = gpu.rounded(gpu.random_values(kSeed));
  File file;
  for (const auto& [name, numbers] : values) {
    const std::vector<int64_t>& shape = gpu.type(name).shape;
    file.add(name.starts_with("seed:") ? name : "in." + name, {shape.begin(), shape.end()}, numbers);
  }
  for (const auto& [name, numbers] : gpu.forward(values)) file.add("out." + name, {numbers.size()}, numbers);
  for (const auto& [name, numbers] : gpu.backward(values))
    file.add("grad." + name, {numbers.size()}, numbers);
  file.write(dir + "/" + sample.name + "." + dtype_text + ".safetensors");
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("kernel values" * doctest::skip()) {
  const char* dir = std::getenv("MOEC_VALUES");
  REQUIRE(dir != nullptr);
  for (const auto& family : {rows_and_elements(), layers(), experts()})
    for (const Sample& sample : family) {
      run_case(sample, "f32", {fb::DType::F32, fb::DType::F32}, dir);
      run_case(sample, "bf16", {fb::DType::BF16, fb::DType::BF16}, dir);
      run_case(sample, "f16", {fb::DType::F16, fb::DType::F16}, dir);
    }
}

TEST_SUITE_END();

}  // namespace moec::test
