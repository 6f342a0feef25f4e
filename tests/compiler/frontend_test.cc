// Specs that are wrong: each is refused with one line that names the place.
#include "compiler/frontend.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <fstream>

#include "compiler/compile.h"
#include "compiler/error.h"

namespace moec::test {
namespace {

/// A sound little model whose parts a test can replace.
std::string spec(const std::string& nodes, const std::string& recipe = "batch_size: 2, seq_len: 4") {
  return R"({name: "m", context: 8, blocks: [
    {name: "embedding", nodes: [{name: "x", inputs: ["tokens"], op_type: "Embedding", op: {vocab_size: 5, dim: 4}}]},
    {name: "body", nodes: [)" +
         nodes + R"(]},
    {name: "head", nodes: [
      {name: "logits", inputs: ["y"], op_type: "Linear", op: {out_features: 5}},
      {name: "loss", inputs: ["logits", "targets"], op_type: "CrossEntropy", op: {}}]}],
    recipe: {)" +
         recipe + "}}";
}

const char kSilu[] = R"({name: "y", inputs: ["x"], op_type: "Silu", op: {}})";

/// The message of the error, "" when it compiles.
std::string error_of(const std::string& json) {
  try {
    compile(parse_model(json, "spec.json"));
  } catch (const CompileError& error) {
    return error.what();
  }
  return "";
}

struct Fault {
  const char* what;
  std::string json;
  const char* message;  // part of it
};

}  // namespace

TEST_CASE("the sound spec compiles") { CHECK(error_of(spec(kSilu)) == ""); }

TEST_CASE("nodes may stand in any order") {
  CHECK(error_of(spec(R"({name: "y", inputs: ["z"], op_type: "Silu", op: {}},
                         {name: "z", inputs: ["x"], op_type: "Silu", op: {}})")) == "");
}

TEST_CASE("wrong specs are refused with the place and the reason") {
  const Fault faults[] = {
      {"broken JSON", "{name: \"m\", blocks: [", "spec.json:1"},
      {"not JSON", "hello", "spec.json:1"},
      {"empty", "", "spec.json"},
      {"unknown field", R"({name: "m", blocks: [], colour: 3})", "colour"},
      {"unknown op", spec(R"({name: "y", inputs: ["x"], op_type: "Convolution", op: {}})"), "Convolution"},
      {"unknown op field", spec(R"({name: "y", inputs: ["x"], op_type: "Silu", op: {slope: 1}})"), "slope"},
      {"no op", spec(R"({name: "y", inputs: ["x"]})"), "required field"},
      {"no name", spec(R"({inputs: ["x"], op_type: "Silu", op: {}})"), "required field"},
      {"compiler's op", spec(R"({name: "y", inputs: ["x"], op_type: "AdamW", op: {}})"),
       "body.y: AdamW is not an op"},
      {"missing value", spec(R"({name: "y", inputs: ["nope"], op_type: "Silu", op: {}})"),
       "body.y: input 'nope' is not a value"},
      {"cycle",
       spec(
           R"({name: "y", inputs: ["z"], op_type: "Silu", op: {}}, {name: "z", inputs: ["y"], op_type: "Silu", op: {}})"),
       "body.y: input 'z' is part of a cycle"},
      {"too few inputs", spec(R"({name: "y", inputs: ["x"], op_type: "Add", op: {}})"),
       "needs 2 inputs (a, b), not 1"},
      {"two parameters of a name", R"({name: "m", context: 8, blocks: [
         {name: "a", nodes: [
           {name: "b.x", inputs: ["tokens"], op_type: "Embedding", op: {vocab_size: 5, dim: 4}}]},
         {name: "a.b", nodes: [
           {name: "x", inputs: ["b.x"], op_type: "Linear", op: {out_features: 5}},
           {name: "loss", inputs: ["x", "targets"], op_type: "CrossEntropy", op: {}}]}],
         recipe: {batch_size: 2, seq_len: 4}})",
       "a.b.x.weight: another node has a parameter of this name"},
      {"no name of the model", R"({name: "", blocks: []})", "spec.json: the name of the model is empty"},
      {"no name of a block", R"({name: "m", blocks: [{name: "a", nodes: []}, {name: "", nodes: []}]})",
       "spec.json: the name of block 2 is empty"},
      {"no name of a node",
       spec(std::string(kSilu) + R"(, {name: "", inputs: ["x"], op_type: "Silu", op: {}})"),
       "spec.json: the name of node 2 of block 'body' is empty"},
      {"two of a name", spec(std::string(kSilu) + "," + kSilu), "body.y: the name stands twice"},
      {"shapes differ", spec(R"({name: "z", inputs: ["x"], op_type: "Linear", op: {out_features: 3}},
                                {name: "y", inputs: ["x", "z"], op_type: "Add", op: {}})"),
       "body.y (add): f32[2,4,4] and f32[2,4,3] differ"},
      {"heads do not divide",
       spec(R"({name: "y", inputs: ["x"], op_type: "Attention", op: {heads: 3, kv_heads: 2, head_dim: 2}})"),
       "3 query heads cannot share 2"},
      {"packed width",
       spec(R"({name: "y", inputs: ["x"], op_type: "Attention", op: {heads: 2, kv_heads: 2, head_dim: 2}})"),
       "needs qkv[B,S,12]"},
      {"odd rotation",
       spec(R"({name: "y", inputs: ["x"], op_type: "Rope", op: {heads: 2, kv_heads: 1, head_dim: 1}})"),
       "odd"},
      {"top_k above experts",
       spec(R"({name: "g", inputs: ["x"], op_type: "Linear", op: {out_features: 2, full_precision: true}},
                                      {name: "y", inputs: ["g"], op_type: "Router", op: {top_k: 3}})"),
       "top_k 3"},
      {"zero features", spec(R"({name: "y", inputs: ["x"], op_type: "Linear", op: {}})"),
       "out_features must be positive"},
      {"sizes overflow",
       spec(R"({name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 4294967295}})",
            "batch_size: 4294967295, seq_len: 8"),
       "larger than any memory"},
      {"tied to nothing",
       spec(R"({name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 4, tied_to: "q"}})"),
       "tied to 'q'"},
      {"tied to another shape",
       spec(
           R"({name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 4, tied_to: "embedding.x.weight"}})"),
       "does not fit"},
      {"number out of range",
       spec(R"({name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: 99999999999999}})"),
       "spec.json:3"},
      {"negative size", spec(R"({name: "y", inputs: ["x"], op_type: "Linear", op: {out_features: -4}})"),
       "spec.json:3"},
      {"dropout of all", spec(R"({name: "y", inputs: ["x"], op_type: "Dropout", op: {p: 1}})"),
       "p must be in [0, 1)"},
      {"a name with control characters", R"({name: "a\u001b[31mb", blocks: []})",
       "the name 'a [31mb' has control characters"},
      {"an input with control characters",
       spec(R"({name: "y", inputs: ["no\npe"], op_type: "Silu", op: {}})"),
       "the name 'no pe' has control characters"},
      {"a field with control characters", R"({name: "m", blocks: [], "co\u0007lour": 3})", "co lour"},
      {"wide heads", spec(R"({name: "w", inputs: ["x"], op_type: "Linear", op: {out_features: 771}},
        {name: "y", inputs: ["w"], op_type: "Attention", op: {heads: 1, kv_heads: 1, head_dim: 257}})"),
       "head_dim 257 is more than 256"},
      {"sequence above context", spec(kSilu, "batch_size: 1, seq_len: 9"), "longer than the model's context"},
      {"no batch", spec(kSilu, "batch_size: 0, seq_len: 4"), "at least 1"},
      {"unknown dtype", spec(kSilu, "dtype: \"F8\""), "F8"},
      {"unsupported dtype", spec(kSilu, "seq_len: 4, dtype: \"U16\""), "dtype must be"},
      {"gradients of another type", spec(kSilu, "seq_len: 4, dtype: \"BF16\", grad_dtype: \"F16\""),
       "grad_dtype must be"},
      {"f16 moments", spec(kSilu, "seq_len: 4, moment_dtype: \"F16\""), "moment_dtype must be"},
      {"a loss scale without f16", spec(kSilu, "seq_len: 4, loss_scale: {}"), "loss_scale is for"},
      {"no loss scale", spec(kSilu, "seq_len: 4, dtype: \"F16\", loss_scale: {initial: 0}"), "loss_scale"},
      {"bad schedule",
       spec(kSilu, "seq_len: 4, schedule: {kind: \"Cosine\", warmup_steps: 5, total_steps: 5}"),
       "total_steps"},
      {"bad betas", spec(kSilu, "seq_len: 4, adamw: {beta1: 1}"), "adamw: beta1"},
      {"unknown sampling", spec(kSilu, "seq_len: 4, sampling: 77"), "recipe: sampling"},
      {"unknown scope", spec(kSilu, "seq_len: 4, weight_decay_scope: 7"), "recipe: weight_decay_scope"},
      {"unknown schedule", spec(kSilu, "seq_len: 4, schedule: {kind: 7, warmup_steps: 1, total_steps: 9}"),
       "schedule: kind"},
      {"unknown style", spec(R"({name: "y", inputs: ["x"], op_type: "Rope",
                op: {heads: 1, kv_heads: 1, head_dim: 2, style: 9}})"),
       "body.y (Rope): unknown enumerator of style"},
      {"newer version", R"({version: 9, name: "m", blocks: []})", "model version 9"},
      {"no blocks", R"({name: "m", blocks: []})", "m: the model has no"},
      {"repeat of nothing", R"({name: "m", blocks: [{name: "b", repeat: 0, nodes: []}]})",
       "repeat must be at least 1"},
      {"too much accumulation", spec(kSilu, "seq_len: 4, grad_accum: 4294967295"),
       "grad_accum must be at most"},
      {"absurd rate", spec(kSilu, "seq_len: 4, lr: 1e300"), "lr must be a number"},
      {"carry into nothing", R"({name: "m", blocks: [{name: "b", repeat: 2, carry: [{from: "nope", to: "y"}],
       nodes: [{name: "y", inputs: ["tokens"], op_type: "Embedding", op: {vocab_size: 5, dim: 4}}]}]})",
       "carries into 'nope'"},
      {"carry of nothing", R"({name: "m", blocks: [{name: "b", carry: [{from: "x", to: "q"}], nodes: []}]})",
       "carries 'q'"},
  };
  for (const Fault& fault : faults) {
    CAPTURE(std::string(fault.what));
    const std::string message = error_of(fault.json);
    CAPTURE(message);
    CHECK(message.find(fault.message) != std::string::npos);
    CHECK(std::ranges::none_of(message, [](unsigned char c) { return std::iscntrl(c) != 0; }));
  }
}

TEST_CASE("a parameter with the name of memory that is kept for another one is refused, naming both") {
  for (const char* prefix : {"grad", "moment1", "moment2", "remainder", "master", "squares"})
    for (const char* dtype : {"F32", "BF16", "F16"}) {
      const std::string json = fmt::format(
          R"({{name: "m", context: 8, blocks: [
            {{name: "a", nodes: [{{name: "x", inputs: ["tokens"], op_type: "Embedding", op: {{vocab_size: 5, dim: 4}}}}]}},
            {{name: "{}", nodes: [
              {{name: "a.x", inputs: ["x"], op_type: "Linear", op: {{out_features: 5}}}},
              {{name: "loss", inputs: ["a.x", "targets"], op_type: "CrossEntropy", op: {{}}}}]}}],
            recipe: {{batch_size: 2, seq_len: 4, dtype: "{}"}}}})",
          prefix, dtype);
      CHECK(error_of(json) ==
            fmt::format("parameter '{}.a.x.weight' has the name of memory that is kept for parameter "
                        "'a.x.weight': rename its block or node",
                        prefix));
    }
}

TEST_CASE("names of parameters are UTF-8") {
  CHECK(
      error_of(spec("{name: \"\xff\", inputs: [\"x\"], op_type: \"RmsNorm\", op: {}}," + std::string(kSilu)))
          .find("UTF-8") != std::string::npos);
  fb::ModelT model = parse_model(spec(kSilu), "spec.json");
  model.blocks[0]->name.push_back('\xff');
  CHECK_THROWS_WITH_AS(compile(model), "embedding\xff.x.weight: the name is not UTF-8", CompileError);
}

TEST_CASE("attributes that are no number, or of the wrong sign, are refused by name") {
  const std::string makers =
      R"({name: "g", inputs: ["x"], op_type: "Linear", op: {out_features: 2, full_precision: true}},
      {name: "w", inputs: ["x"], op_type: "Linear", op: {out_features: 6}},
      {name: "r", inputs: ["g"], op_type: "Router", op: {top_k: 1}},
      {name: "i", inputs: ["r.experts"], op_type: "ExpertIndex", op: {experts: 2}},)";
  struct Attribute {
    const char *op, *inputs, *others, *name;
    bool zero, negative;  // whether they are values of it
  };
  const Attribute attributes[] = {
      {"RmsNorm", R"("x")", "", "eps", true, false},
      {"LayerNorm", R"("x")", "", "eps", true, false},
      {"Scale", R"("x")", "", "factor", true, true},
      {"Dropout", R"("x")", "", "p", true, false},
      {"Linear", R"("x")", "out_features: 4, ", "init_std", true, false},
      {"Embedding", R"("tokens")", "vocab_size: 5, dim: 4, ", "init_std", true, false},
      {"Rope", R"("w")", "heads: 1, kv_heads: 1, head_dim: 2, ", "base", false, false},
      {"Rope", R"("w")", "heads: 1, kv_heads: 1, head_dim: 2, ", "ntk_alpha", false, false},
      {"AuxLoss", R"("r.probs", "i.offsets")", "", "coefficient", true, false},
      {"RouterZLoss", R"("g")", "", "coefficient", true, false},
  };
  for (const auto& [op, inputs, others, name, zero, negative] : attributes)
    for (const char* value : {"nan", "inf", "-inf", "-0.5", "0"}) {
      const std::string node = fmt::format(R"({{name: "z", inputs: [{}], op_type: "{}", op: {{{}{}: {}}}}})",
                                           inputs, op, others, name, value);
      const bool sound = *value == '0' ? zero : std::string_view(value) == "-0.5" && negative;
      const std::string message = error_of(spec(makers + node + "," + kSilu));
      CAPTURE(node);
      CAPTURE(message);
      CHECK(message.starts_with("body.z (") != sound);
      CHECK((message.find(std::string("): ") + name) != std::string::npos) != sound);
    }
  for (const char* name : {"eps", "weight_decay", "beta1", "beta2"})
    for (const char* value : {"nan", "inf", "-1"})
      CHECK(error_of(spec(kSilu, fmt::format("seq_len: 4, adamw: {{{}: {}}}", name, value)))
                .starts_with("m: recipe: adamw: "));
}

TEST_CASE("a token is below the vocabulary of every embedding and the classes of every loss") {
  const auto vocabulary = [](int embedded, int first, int second) {
    const std::string json =
        fmt::format(R"({{name: "m", context: 8, recipe: {{batch_size: 2, seq_len: 4}}, blocks: [
      {{name: "b", nodes: [
        {{name: "x", inputs: ["tokens"], op_type: "Embedding", op: {{vocab_size: {}, dim: 4}}}},
        {{name: "y", inputs: ["x"], op_type: "Linear", op: {{out_features: {}}}}},
        {{name: "z", inputs: ["x"], op_type: "Linear", op: {{out_features: {}}}}},
        {{name: "first", inputs: ["y", "targets"], op_type: "CrossEntropy", op: {{}}}},
        {{name: "second", inputs: ["z", "targets"], op_type: "CrossEntropy", op: {{}}}}]}}]}})",
                    embedded, first, second);
    return compile(parse_model(json, "m.json")).vocab_size;
  };
  CHECK(vocabulary(5, 7, 9) == 5);
  CHECK(vocabulary(9, 7, 8) == 7);
  CHECK(vocabulary(9, 8, 7) == 7);
}

TEST_CASE("every prefix of a spec is refused without a crash") {
  std::ifstream file(MOEC_SOURCE_DIR "/schema/examples/moe-tiny.json");
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  const size_t end = json.find_last_of('}');
  for (size_t length = 0; length < end; length += 7) {
    CAPTURE(length);
    CHECK(error_of(json.substr(0, length)) != "");
  }
}

TEST_CASE("a file that is not there, and one that is a folder") {
  CHECK_THROWS_WITH_AS(read_model("/nowhere/spec.json"), "/nowhere/spec.json: no such file", CompileError);
  CHECK_THROWS_WITH_AS(read_model("/"), "/: not a regular file", CompileError);
}

}  // namespace moec::test
