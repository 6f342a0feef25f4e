// Models whose RoPE and attention divide one qkv into unlike heads are refused by name.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <string>

#include "compiler/compile.h"
#include "compiler/error.h"
#include "compiler/frontend.h"

namespace moec::test {
namespace {

/// What the compiler says of a qkv of 48 columns that goes through two Ropes and an Attention with these
/// attributes; "" if nothing.
std::string refusal(const char* first, const char* second, const char* attention) {
  const std::string json =
      fmt::format(R"({{name: "m", context: 8, recipe: {{batch_size: 2, seq_len: 4}}, blocks: [
    {{name: "layer", nodes: [
      {{name: "x", inputs: ["tokens"], op_type: "Embedding", op: {{vocab_size: 5, dim: 48}}}},
      {{name: "first", inputs: ["x"], op_type: "Rope", op: {}}},
      {{name: "second", inputs: ["first"], op_type: "Rope", op: {}}},
      {{name: "attention", inputs: ["second"], op_type: "Attention", op: {}}},
      {{name: "logits", inputs: ["attention"], op_type: "Linear", op: {{out_features: 5}}}},
      {{name: "loss", inputs: ["logits", "targets"], op_type: "CrossEntropy", op: {{}}}}]}}]}})",
                  first, second, attention);
  try {
    compile(parse_model(json, "m.json"));
  } catch (const CompileError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("RoPE and attention that divide a qkv into unlike heads are refused, both named") {
  const char* wide = "{heads: 4, kv_heads: 1, head_dim: 8}";
  CHECK(refusal(wide, wide, wide) == "");
  CHECK(refusal(wide, wide, "{heads: 2, kv_heads: 1, head_dim: 12}") ==
        "layer.attention (attention): has heads 2, kv_heads 1, head_dim 12, but takes its qkv from "
        "layer.second "
        "(rope), which has heads 4, kv_heads 1, head_dim 8");
  CHECK(refusal(wide, wide, "{heads: 2, kv_heads: 2, head_dim: 8}")
            .starts_with("layer.attention (attention): "));
  CHECK(
      refusal("{heads: 2, kv_heads: 1, head_dim: 12}", wide, wide)
          .starts_with("layer.second (rope): has heads 4, kv_heads 1, head_dim 8, but takes its qkv from "));
}

}  // namespace moec::test
