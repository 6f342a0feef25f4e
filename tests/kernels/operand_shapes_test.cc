#include "kernels/operand_shapes.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/catalog.h"
#include "kernels/gradient_squares.h"

namespace moec {
namespace {

using Shapes = std::vector<std::vector<int64_t>>;

constexpr PlanSizes kPlan = {.batch_size = 2, .seq_len = 3, .vocab_size = 7};

std::vector<TensorView> views(const Shapes& shapes) {
  std::vector<TensorView> result;
  for (const std::vector<int64_t>& shape : shapes) {
    TensorView& view = result.emplace_back();
    if (shape == std::vector<int64_t>{-1}) continue;  // absent
    view.rank = static_cast<int>(shape.size());
    std::ranges::copy(shape, view.shape.begin());
  }
  return result;
}

const std::vector<int64_t> kAbsent = {-1};

/// The misfit of a call of `key` with operands of these shapes.
template <class Attrs = fb::SiluT>
std::string misfit(const char* key, const Shapes& inputs, const Shapes& outputs, const Attrs& attrs = {}) {
  fb::OpUnion op;
  op.Set(Attrs(attrs));
  const KernelInfo& kernel = *find_kernel(key);
  return kernel.shapes.misfit(
      kernel, {.inputs = views(inputs), .outputs = views(outputs), .workspace = {}, .op = &op}, kPlan);
}

}  // namespace

TEST_CASE("every kernel has a row in operand_shapes.def, and every row a kernel") {
  std::string missing, unknown;
  for (const KernelInfo& kernel : kernel_catalog())
    if (kernel.shapes.empty()) missing.append(missing.empty() ? "" : ", ").append(kernel.key);
  CHECK_MESSAGE(missing.empty(), "operand_shapes.def has no row for: " << missing);
#define SHAPES(key, shapes) \
  if (find_kernel(#key) == nullptr) unknown.append(unknown.empty() ? "" : ", ").append(#key);
#include "kernels/operand_shapes.def"
#undef SHAPES
  CHECK_MESSAGE(unknown.empty(), "catalog.def has no kernels: " << unknown);
}

TEST_CASE("a row that does not fit the kernel's operands is refused") {
  const KernelInfo& linear = *find_kernel("linear");
  const auto refused = [&](const char* row, const char* message) {
    CHECK_THROWS_WITH_AS(ShapeRule(linear, row), message, std::logic_error);
  };
  CHECK_NOTHROW(ShapeRule(linear, "x[..,i] weight[o,i] bias[o] -> y[..,o]; 2|o o<=i x=y"));
  refused("x[..,i] weight[o,i] -> y[..,o]",
          "operand_shapes.def: the row of linear says nothing about 'bias'");
  refused("x[..,i] weight[o,i] bias[o] z -> y[..,o]",
          "operand_shapes.def: the row of linear has no such operand as 'z'");
  refused("x[..,i] weight[o,i] bias[n] -> y[..,n+1]",
          "operand_shapes.def: the row of linear leaves open the size 'n'");
  refused("x[..,i] weight[o,i] bias[out] -> y[..,o]",
          "operand_shapes.def: the row of linear has no such size as 'out'");
  refused("x[..,i] weight[o,i] bias[o] -> y[..,o]; o>i",
          "operand_shapes.def: the row of linear has no such condition as 'o>i'");
}

TEST_CASE("letters agree within a call, leading dimensions by their product") {
  const auto linear = [](const Shapes& inputs, const Shapes& outputs) {
    fb::LinearT attrs;
    attrs.bias = inputs[2] != kAbsent;
    return misfit("linear", inputs, outputs, attrs);
  };
  CHECK(linear({{2, 3, 5}, {7, 5}, {7}}, {{2, 3, 7}}).empty());
  CHECK(linear({{2, 3, 5}, {7, 5}, kAbsent}, {{6, 7}}).empty());
  CHECK(linear({{5}, {7, 5}, kAbsent}, {{7}}).empty());
  CHECK(linear({{2, 3, 5}, {5, 7}, {7}}, {{2, 3, 7}}) ==
        "'weight' is [5,7], expected [o,i] with o = 5, i = 5");
  CHECK(linear({{2, 3, 5}, {7, 5}, {7}}, {{2, 4, 7}}) ==
        "'y' is [2,4,7], expected [..,o] with .. = 6, o = 7");
  CHECK(linear({{2, 3, 5}, {35}, {7}}, {{2, 3, 7}}) == "'weight' is [35], expected [o,i] with i = 5");
  CHECK(linear({{0, 5}, {7, 5}, {7}}, {{0, 7}}) == "'x' is [0,5], expected [..,i]");
  CHECK(linear({{}, {7, 5}, {7}}, {{7}}) == "'x' is [], expected [..,i]");
}

TEST_CASE("an input that is updated has the shape of its output") {
  fb::LinearT biased;
  biased.bias = true;
  CHECK(misfit("bias_bwd", {{6, 5}, {5}}, {{5}}, biased).empty());
  CHECK(misfit("bias_bwd", {{6, 5}, {4}}, {{5}}, biased) == "'dbias_prev' is [4], expected [o] with o = 5");
}

TEST_CASE("sizes made of others, and those of attributes and of the plan") {
  CHECK(misfit("swiglu", {{6, 10}}, {{6, 5}}).empty());
  CHECK(misfit("swiglu", {{6, 11}}, {{6, 5}}) == "'x' is [6,11], expected [..,2*f] with .. = 6, f = 5");
  CHECK(misfit("dispatch", {{6, 4}, {12}, {2, 3, 2}}, {{12, 4}}).empty());
  CHECK(misfit("dispatch", {{6, 4}, {12}, {2, 3, 2}}, {{11, 4}}) ==
        "'rows' is [11,4], expected [..*k,d] with .. = 6, k = 2, d = 4");
  fb::ExpertIndexT index;
  index.experts = 4;
  CHECK(misfit("expert_index", {{6, 2}}, {{5}, {12}, {6, 2}}, index).empty());
  CHECK(misfit("expert_index", {{6, 2}}, {{4}, {12}, {6, 2}}, index) ==
        "'offsets' is [4], expected [experts+1] with experts = 4");
  CHECK(misfit("load_batch", {{9}, {160}}, {{2, 3}, {2, 3}}, fb::LoadBatchT()).empty());
  CHECK(misfit("load_batch", {{9}, {160}}, {{6, 1}, {6, 1}}, fb::LoadBatchT()) ==
        "'tokens' is [6,1], expected [batch_size,seq_len] with batch_size = 2, seq_len = 3");
}

TEST_CASE("the sums of squares are as large as the kernel makes them") {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 256}, {17, 257}, {1, 1}, {2048, 1023}}) {
    const auto fits = [&](const std::vector<int64_t>& squares) {
      return misfit("grouped_linear_bwd_weight", {{9, rows}, {9, cols}, {4}, kAbsent},
                    {{3, rows, cols}, squares})
          .empty();
    };
    std::vector<int64_t> squares = squares_shape(3, rows, cols);
    CHECK(fits(squares));
    ++squares[1];
    CHECK_FALSE(fits(squares));
  }
}

TEST_CASE("conditions: at most, a multiple, both or neither") {
  CHECK(misfit("embedding", {{2, 3}, {7, 4}}, {{2, 3, 4}}).empty());
  CHECK(misfit("embedding", {{2, 3}, {6, 4}}, {{2, 3, 4}}) ==
        "vocab_size<=v does not hold: vocab_size = 7, v = 6");
  fb::AttentionT attention;
  const auto attend = [&](uint32_t heads, uint32_t kv_heads, uint32_t head_dim) {
    attention.heads = heads;
    attention.kv_heads = kv_heads;
    attention.head_dim = head_dim;
    const int64_t width = int64_t{heads} * head_dim;
    return misfit("attention", {{2, 3, width + 2 * int64_t{kv_heads} * head_dim}},
                  {{2, 3, width}, {2, heads, 3}}, attention);
  };
  CHECK(attend(4, 2, 8).empty());
  CHECK(attend(4, 3, 8) == "kv_heads|heads does not hold: kv_heads = 3, heads = 4");
  CHECK(attend(4, 0, 8) == "kv_heads|heads does not hold: kv_heads = 0, heads = 4");
  CHECK(attend(4, 2, 256).empty());
  CHECK(attend(4, 2, 257) == "head_dim<=256 does not hold: head_dim = 257");
  const Shapes head = {{6, 4}, {7, 4}, {6}, {}, kAbsent};
  CHECK(misfit("linear_cross_entropy", head, {{}, {6, 4}, {7, 4}}).empty());
  CHECK(misfit("linear_cross_entropy", head, {{}, {6, 4}, kAbsent}) ==
        "of 'dloss' and 'dweight' only 'dloss' is there");
}

TEST_CASE("optional operands are those that the attributes have") {
  fb::LinearT biased;
  biased.bias = true;
  const Shapes with = {{6, 5}, {7, 5}, {7}}, without = {{6, 5}, {7, 5}, kAbsent};
  CHECK(misfit("linear", with, {{6, 7}}, biased).empty());
  CHECK(misfit("linear", without, {{6, 7}}, fb::LinearT()).empty());
  CHECK(misfit("linear", without, {{6, 7}}, biased) == "of 'bias' and 'biased' only 'biased' is there");
  CHECK(misfit("linear", with, {{6, 7}}, fb::LinearT()) == "of 'bias' and 'biased' only 'bias' is there");
  fb::FusedLinearT dropped;
  const Shapes stateless = {{6, 5}, {7, 5}, kAbsent, kAbsent, kAbsent};
  const Shapes stateful = {{6, 5}, {7, 5}, kAbsent, kAbsent, {8}};
  CHECK(misfit("fused_linear", stateless, {{6, 7}, kAbsent}, dropped).empty());
  CHECK(misfit("fused_linear", stateful, {{6, 7}, kAbsent}, dropped).empty());
  dropped.dropout_p = 0.5f;
  CHECK(misfit("fused_linear", stateful, {{6, 7}, kAbsent}, dropped).empty());
  CHECK(misfit("fused_linear", stateless, {{6, 7}, kAbsent}, dropped) ==
        "of 'dropout' and 'state' only 'dropout' is there");
}

TEST_CASE("sizes beyond 64 bits do not wrap") {
  constexpr int64_t kMany = int64_t{1} << 47;
  CHECK_FALSE(misfit("dispatch", {{kMany, 1}, {1}, {kMany, kMany}}, {{1, 1}}).empty());
  fb::RopeT rope;
  rope.heads = rope.kv_heads = rope.head_dim = UINT32_MAX - 1;
  CHECK_FALSE(misfit("rope", {{1, 1, 4}}, {{1, 1, 4}}, rope).empty());
}

}  // namespace moec
