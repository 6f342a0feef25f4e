// What an op is to the compiler: one OpDef per kernel of the catalog. The rows stand in ops/op_table.def,
// their definitions in ops/*.cc, one file per family.
#pragma once

#include <fmt/format.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "compiler/error.h"
#include "compiler/graph.h"
#include "kernels/catalog.h"

namespace moec {

/// A call of an op as types: what shape inference, parameter declaration and the cost model see.
class OpCall {
 public:
  OpCall(const OpDef& def, const fb::OpUnion& attrs, const std::string& label, const Graph& graph,
         std::vector<const TensorType*> inputs);

  template <class Attrs>
  const Attrs& attrs() const {
    return *static_cast<const Attrs*>(attrs_.value);
  }
  const Precision& precision() const { return graph_.precision(); }
  int64_t tokens() const { return graph_.tokens(); }
  bool has_input(int i) const { return inputs_[static_cast<size_t>(i)] != nullptr; }
  const TensorType& input(int i) const { return *inputs_[static_cast<size_t>(i)]; }
  size_t input_count() const { return inputs_.size(); }
  const std::vector<TensorType>& outputs() const { return outputs_; }
  const TensorType& output(int i) const { return outputs_[static_cast<size_t>(i)]; }
  bool has_output(int i) const { return made_[static_cast<size_t>(i)]; }

  void set_output(int i, TensorType type);

  /// Throws CompileError "<label> (<op>): <message>" unless `condition` holds.
  template <class... Args>
  void require(bool condition, fmt::format_string<Args...> format, Args&&... args) const {
    if (!condition) fail(fmt::format(format, std::forward<Args>(args)...));
  }
  /// Requires a finite number above zero, or one not below it, of the attribute of this name.
  void require_positive(std::string_view attribute, double value) const;
  void require_not_negative(std::string_view attribute, double value) const;
  [[noreturn]] void fail(const std::string& message) const;

 private:
  const OpDef& def_;
  const fb::OpUnion& attrs_;
  const std::string& label_;
  const Graph& graph_;
  std::vector<const TensorType*> inputs_;
  std::vector<TensorType> outputs_;
  std::vector<bool> made_;
};

/// A parameter that an op owns, appended to its inputs under the catalog's operand name.
struct ParameterSpec {
  std::string name;  // "weight", "bias": an operand of the kernel
  std::vector<int64_t> shape;
  float init_std = 0;  // N(0, init_std) when > 0, else filled with init_value
  float init_value = 0;
  std::string tied_to{};       // use this parameter instead of a new one
  double active_fraction = 1;  // share of the elements that work on one token
};

/// One backward rule at work: reads the forward node, adds nodes to the graph.
class BackwardContext {
 public:
  virtual ~BackwardContext() = default;
  virtual ValueId input(int i) const = 0;
  virtual ValueId output(int i) const = 0;
  /// Gradient of output i, kNoValue when nothing depends on it.
  virtual ValueId grad(int i) const = 0;
  /// Adds the op `key` with the forward node's attributes. Its output j is (a contribution to) the gradient
  /// of the forward input targets[j]; gradients of parameters go to their gradient memory, where they
  /// accumulate. Adds nothing when none of the targets needs a gradient.
  virtual void emit(std::string_view key, std::vector<ValueId> inputs, std::vector<int> targets) = 0;
  /// The gradient of input i is the existing value `gradient`.
  virtual void pass(int i, ValueId gradient) = 0;
};

/// How a test fills an input of a sample.
enum class Fill : uint8_t {
  kNormal,           // N(0, 1)
  kTies,             // in every row two equal largest values, all others equal
  kTokens,           // i32 in [0, bound)
  kTargets,          // i32 in [-1, bound): some are ignored
  kDistinctExperts,  // i32 rows of distinct experts in [0, bound - 1): the last expert stays empty
  kOneExpert,        // i32, row j-th choice is expert j: all tokens on the same experts
};

struct SampleInput {
  std::string name;
  std::vector<int64_t> shape;
  Fill fill = Fill::kNormal;
  int64_t bound = 0;
};

/// A small problem for an op, written as nodes of a model over the inputs. From it follow gradcheck, parity
/// between devices, determinism and overrun tests.
struct Sample {
  std::string name;
  std::vector<SampleInput> inputs;
  std::string nodes;               // the elements of Block.nodes in JSON
  bool keeps_activations = false;  // that the backward pass makes again otherwise (compiler/recompute.h)
};

struct OpDef {
  std::string_view key;  // kernel of the catalog
  fb::Op attrs = fb::Op::NONE;
  /// Sets the output types; throws CompileError when an input does not fit.
  void (*infer)(OpCall& call) = nullptr;
  /// Floating point operations of a call, outputs inferred; nullptr counts one per output element.
  double (*flops)(const OpCall& call) = nullptr;
  /// Bytes that a call has to move; nullptr counts every operand once.
  double (*bytes)(const OpCall& call) = nullptr;

  // Of ops that models are written in:
  bool in_models = false;
  std::vector<ParameterSpec> (*parameters)(const OpCall& call) = nullptr;
  /// The backward rule, or no_backward.
  void (*backward)(BackwardContext& context) = nullptr;
  /// Outputs that gradients flow through (bit i for output i); the others are what the backward rule saves.
  uint32_t gradient_outputs = 1;
  bool is_loss = false;
  std::vector<Sample> (*samples)() = nullptr;

  const KernelInfo& kernel() const { return *find_kernel(key); }
};

/// The rule of ops whose outputs carry no gradient.
void no_backward(BackwardContext& context);

/// All ops, in the order of op_table.def.
std::span<const OpDef* const> op_table();
const OpDef& find_op(std::string_view key);
/// The op of a model's node; nullptr when models may not use it.
const OpDef* find_model_op(fb::Op attrs);

/// Attributes as a union, e.g. make_attrs(fb::FillT{.value = 0}).
template <class Attrs>
fb::OpUnion make_attrs(Attrs attrs = {}) {
  fb::OpUnion op;
  op.Set(std::move(attrs));
  return op;
}

}  // namespace moec
