#include "compiler/graph.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "compiler/op.h"

namespace moec {

int64_t TensorType::elements() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

const char* dtype_name(fb::DType dtype) {
  switch (dtype) {
    case fb::DType::F32:
      return "f32";
    case fb::DType::F64:
      return "f64";
    case fb::DType::BF16:
      return "bf16";
    case fb::DType::F16:
      return "f16";
    case fb::DType::I32:
      return "i32";
    case fb::DType::U16:
      return "u16";
    case fb::DType::U8:
      return "u8";
  }
  return "?";
}

std::string TensorType::to_string() const {
  return fmt::format("{}[{}]", dtype_name(dtype), fmt::join(shape, ","));
}

ValueId Graph::add_value(std::string name, TensorType type, Role role) {
  // Leaves headroom so that sums over a whole model cannot overflow either.
  constexpr int64_t kMaxBytes = int64_t{1} << 50;
  int64_t bytes = dtype_size(type.dtype);
  for (const int64_t d : type.shape)
    if (d < 0 || __builtin_mul_overflow(bytes, d, &bytes) || bytes > kMaxBytes)
      compile_error("{}: {} is larger than any memory", name, type.to_string());
  if (type.shape.size() > TensorView::kMaxRank)
    compile_error("{}: more than {} dimensions", name, TensorView::kMaxRank);
  values_.push_back({.name = std::move(name), .type = std::move(type), .role = role});
  return static_cast<ValueId>(values_.size() - 1);
}

ValueId Graph::persistent(const std::string& name, const TensorType& type, Role role) {
  if (const auto it = current_.find(name); it != current_.end()) return it->second;
  return current_[name] = add_value(name, type, role);
}

ValueId Graph::next_version(ValueId id) {
  const Value value_now = value(id);
  const ValueId next = add_value(value_now.name, value_now.type, value_now.role);
  value(next).version = value_now.version + 1;
  current_[value_now.name] = next;
  return next;
}

int Graph::add_node(const OpDef& def, const fb::OpUnion& attrs, std::string label,
                    std::vector<ValueId> inputs, std::vector<ValueId> outputs, Phase phase) {
  const KernelInfo& kernel = def.kernel();
  const bool variadic = !kernel.inputs.empty() && kernel.inputs.back().variadic;
  if (!variadic) inputs.resize(kernel.inputs.size(), kNoValue);
  outputs.resize(kernel.outputs.size(), kNoValue);

  std::vector<const TensorType*> types;
  for (const ValueId id : inputs) types.push_back(id == kNoValue ? nullptr : &value(id).type);
  OpCall call(def, attrs, label, *this, types);
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i] != kNoValue) call.set_output(static_cast<int>(i), value(outputs[i]).type);
  for (size_t i = 0; i < kernel.inputs.size() && !kernel.inputs[i].variadic; ++i)
    call.require(kernel.inputs[i].optional || types[i] != nullptr, "input '{}' is missing",
                 kernel.inputs[i].name);
  def.infer(call);

  const int index = static_cast<int>(nodes_.size());
  bool requires_grad = false;
  for (const ValueId id : inputs)
    requires_grad = requires_grad || (id != kNoValue && value(id).requires_grad);
  const std::vector<TensorType> made = call.outputs();
  for (size_t i = 0; i < outputs.size(); ++i) {
    const int out = static_cast<int>(i);
    if (!call.has_output(out)) continue;
    if (outputs[i] == kNoValue) {
      const std::string suffix = kernel.outputs.size() == 1 ? "" : "." + kernel.outputs[i].name;
      outputs[i] = add_value(label + suffix, made[i], Role::kActivation);
    }
    Value& output = value(outputs[i]);
    call.require(output.type == made[i], "writes {} to '{}', which is {}", made[i].to_string(), output.name,
                 output.type.to_string());
    output.producer = index;
    const bool differentiable =
        def.backward != nullptr && def.backward != no_backward && (def.gradient_outputs >> i & 1);
    output.requires_grad = requires_grad && differentiable;
  }
  nodes_.push_back({.def = &def,
                    .attrs = attrs,
                    .label = std::move(label),
                    .phase = phase,
                    .inputs = std::move(inputs),
                    .outputs = std::move(outputs)});
  return index;
}

void Graph::replace_nodes(std::vector<Node> nodes) {
  constexpr int kNone = -1;
  for (Value& value : values_) value.producer = kNone;
  nodes_ = std::move(nodes);
  for (size_t index = 0; index < nodes_.size(); ++index) {
    const Node& node = nodes_[index];
    std::vector<const TensorType*> types;
    for (const ValueId id : node.inputs) types.push_back(id == kNoValue ? nullptr : &value(id).type);
    OpCall call(*node.def, node.attrs, node.label, *this, types);
    for (const ValueId id : node.inputs) {
      if (id == kNoValue) continue;
      const bool found = value(id).role != Role::kActivation && value(id).version == 0;
      call.require(found || value(id).producer != kNone, "reads '{}' before it is written", value(id).name);
    }
    for (size_t i = 0; i < node.outputs.size(); ++i)
      if (node.outputs[i] != kNoValue) call.set_output(static_cast<int>(i), value(node.outputs[i]).type);
    node.def->infer(call);
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      if (node.outputs[i] == kNoValue) continue;
      Value& output = value(node.outputs[i]);
      call.require(output.producer == kNone, "writes '{}' a second time", output.name);
      call.require(output.type == call.output(static_cast<int>(i)), "writes {} to '{}', which is {}",
                   call.output(static_cast<int>(i)).to_string(), output.name, output.type.to_string());
      output.producer = static_cast<int>(index);
    }
  }
}

}  // namespace moec
