// The compiler's graph: nodes in execution order over typed values. One graph is one program.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace moec {

struct OpDef;

struct TensorType {
  fb::DType dtype = fb::DType::F32;
  std::vector<int64_t> shape;

  bool operator==(const TensorType&) const = default;
  int64_t elements() const;
  int64_t bytes() const { return elements() * dtype_size(dtype); }
  int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const { return cols() == 0 ? 0 : elements() / cols(); }
  /// "bf16[8,128,64]".
  std::string to_string() const;
};

const char* dtype_name(fb::DType dtype);

/// What the memory of a value is. Everything but activations outlives the program.
enum class Role : uint8_t { kActivation, kParameter, kGradient, kOptimizerState, kState, kIo };

using ValueId = int32_t;
constexpr ValueId kNoValue = -1;

/// Written by at most one node. Persistent memory that several nodes write has one value per write, its
/// versions; version 0 is what the program finds there.
struct Value {
  std::string name;
  TensorType type;
  Role role = Role::kActivation;
  int producer = -1;  // node that writes it, -1 for inputs and version 0
  int version = 0;
  bool requires_grad = false;
};

enum class Phase : uint8_t { kForward, kBackward, kOptimizer };

struct Node {
  const OpDef* def = nullptr;
  fb::OpUnion attrs;
  std::string label;  // "block.0.qkv", "block.0.qkv.backward"
  Phase phase = Phase::kForward;
  std::vector<ValueId> inputs;  // in the kernel's order; kNoValue where an optional one is absent
  std::vector<ValueId> outputs;
  bool recompute = false;  // makes again what an earlier node has made
};

/// Types that a whole graph is computed in.
struct Precision {
  fb::DType compute = fb::DType::F32;   // parameters and activations
  fb::DType gradient = fb::DType::F32;  // parameter gradients
  /// Statistics, router values and losses.
  fb::DType accumulator() const { return compute == fb::DType::F64 ? fb::DType::F64 : fb::DType::F32; }
};

class Graph {
 public:
  /// `tokens` is B*S, what one run of the program works on.
  Graph(Precision precision, int64_t tokens) : precision_(precision), tokens_(tokens) {}

  const Precision& precision() const { return precision_; }
  int64_t tokens() const { return tokens_; }
  const std::vector<Value>& values() const { return values_; }
  const std::vector<Node>& nodes() const { return nodes_; }
  const Value& value(ValueId id) const { return values_[static_cast<size_t>(id)]; }
  Value& value(ValueId id) { return values_[static_cast<size_t>(id)]; }

  /// A new value; throws CompileError when its size does not fit 64 bits.
  ValueId add_value(std::string name, TensorType type, Role role);

  /// The current version of the persistent memory `name`, made as version 0 at first use.
  ValueId persistent(const std::string& name, const TensorType& type, Role role);
  /// A further version of persistent memory, current from now on.
  ValueId next_version(ValueId id);

  /// Appends a node; its outputs get the types that shape inference finds. `outputs` may name values to be
  /// written (persistent ones); entries of kNoValue become new activations "<label>.<output name>".
  /// Inputs missing at the end are taken as absent.
  int add_node(const OpDef& def, const fb::OpUnion& attrs, std::string label, std::vector<ValueId> inputs,
               std::vector<ValueId> outputs = {}, Phase phase = Phase::kForward);

  /// Makes `nodes` the graph's, in this order, which is how a pass ends. Throws CompileError when a value is
  /// written twice or read before it is written, or is not of the type that its op infers.
  void replace_nodes(std::vector<Node> nodes);

 private:
  Precision precision_;
  int64_t tokens_;
  std::vector<Value> values_;
  std::vector<Node> nodes_;
  std::map<std::string, ValueId> current_;  // persistent memory by name -> current version
};

}  // namespace moec
