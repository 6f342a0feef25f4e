#include "compiler/builder.h"

#include <algorithm>
#include <set>

#include "kernels/train_state.h"
#include "schema/rules.h"

namespace moec {
namespace {

bool is_parameter_operand(const OpDef& def, const std::string& name) {
  return def.parameters != nullptr && (name == "weight" || name == "bias");
}

std::string op_name(fb::Op type) { return fb::EnumNameOp(type); }

}  // namespace

ValueId train_state(Graph& graph) {
  return graph.persistent(kTrainStateName, {fb::DType::U8, {sizeof(TrainState)}}, Role::kState);
}

ModelBuilder::ModelBuilder(Graph& graph, Mode mode) : graph_(graph), mode_(mode) {}

ValueId ModelBuilder::lookup(const std::string& name) const {
  const auto it = scope_.find(name);
  return it == scope_.end() ? kNoValue : it->second;
}

void ModelBuilder::add_model(const fb::ModelT& model) {
  find_logits(model);
  std::set<std::string> names;
  for (const auto& block : model.blocks) {
    if (!names.insert(block->name).second) compile_error("block '{}' stands twice", block->name);
    add_block(*block);
  }
}

/// A prefill needs one position's logits only, so it selects that position before the Linear that makes them.
void ModelBuilder::find_logits(const fb::ModelT& model) {
  std::string read_by_loss;
  for (const auto& block : model.blocks)
    for (const auto& node : block->nodes)
      if (node->op.type == fb::Op::CrossEntropy && !node->inputs.empty()) read_by_loss = node->inputs[0];
  for (const auto& block : model.blocks)
    for (const auto& node : block->nodes)
      if (node->name == read_by_loss && node->op.type == fb::Op::Linear) logits_node_ = node->name;
}

void ModelBuilder::add_block(const fb::BlockT& block) {
  if (block.repeat == 0) compile_error("block '{}': repeat must be at least 1", block.name);
  constexpr uint32_t kMaxRepeat = 10000;
  if (block.repeat > kMaxRepeat) compile_error("block '{}': repeat is above {}", block.name, kMaxRepeat);
  std::set<std::string> names;
  for (const auto& node : block.nodes)
    if (!names.insert(node->name).second)
      compile_error("{}.{}: the name stands twice", block.name, node->name);
  for (const auto& carry : block.carry)
    if (!names.contains(carry->to) && !names.contains(carry->to.substr(0, carry->to.find('.'))))
      compile_error("block '{}': carries '{}', which no node of it makes", block.name, carry->to);

  for (const auto& carry : block.carry)
    if (lookup(carry->from) == kNoValue)
      compile_error("block '{}': carries into '{}', which is not a value before the block", block.name,
                    carry->from);

  Scope outer = scope_;
  for (uint32_t i = 0; i < block.repeat; ++i) {
    const std::string prefix = block.repeat == 1 ? block.name + "." : fmt::format("{}.{}.", block.name, i);
    for (const auto& node : block.nodes)
      std::erase_if(scope_, [&](const auto& entry) {
        return entry.first == node->name || entry.first.starts_with(node->name + ".");
      });
    add_repetition(block, prefix);
    for (const auto& carry : block.carry) scope_[carry->from] = lookup(carry->to);
  }
  for (const auto& carry : block.carry)
    if (const auto it = outer.find(carry->from); it != outer.end()) scope_[carry->from] = it->second;
}

/// Adds nodes in the order in which their inputs become known, first come first.
void ModelBuilder::add_repetition(const fb::BlockT& block, const std::string& prefix) {
  std::vector<const fb::NodeT*> waiting;
  for (const auto& node : block.nodes) waiting.push_back(node.get());
  while (!waiting.empty()) {
    const auto next =
        std::find_if(waiting.begin(), waiting.end(), [&](const fb::NodeT* node) { return ready(*node); });
    if (next == waiting.end()) {
      const fb::NodeT& stuck = *waiting.front();
      const auto missing = std::find_if(stuck.inputs.begin(), stuck.inputs.end(),
                                        [&](const std::string& name) { return lookup(name) == kNoValue; });
      const std::string maker = missing->substr(0, missing->find('.'));
      const bool cyclic =
          std::any_of(waiting.begin(), waiting.end(), [&](const fb::NodeT* n) { return n->name == maker; });
      compile_error("{}{}: input '{}' {}", prefix, stuck.name, *missing,
                    cyclic ? "is part of a cycle, or no output of that node has this name"
                           : "is not a value of this block, an earlier block or the graph");
    }
    add_node(**next, prefix);
    waiting.erase(next);
  }
}

bool ModelBuilder::ready(const fb::NodeT& node) const {
  return std::all_of(node.inputs.begin(), node.inputs.end(),
                     [&](const std::string& name) { return lookup(name) != kNoValue; });
}

void ModelBuilder::publish(const fb::NodeT& node, const KernelInfo& kernel,
                           const std::vector<ValueId>& outputs) {
  scope_[node.name] = outputs[0];
  for (size_t i = 0; i < outputs.size(); ++i) scope_[node.name + "." + kernel.outputs[i].name] = outputs[i];
}

std::vector<ValueId> ModelBuilder::data_inputs(const fb::NodeT& node, const OpDef& def,
                                               const std::string& label) const {
  std::vector<std::string> expected;
  // Optional operands that are no parameters are for fused ops.
  for (const Operand& operand : def.kernel().inputs)
    if (operand.name != "state" && !operand.optional && !is_parameter_operand(def, operand.name))
      expected.push_back(operand.name);
  if (node.inputs.size() != expected.size())
    compile_error("{} ({}): needs {} input{} ({}), not {}", label, op_name(node.op.type), expected.size(),
                  expected.size() == 1 ? "" : "s", fmt::join(expected, ", "), node.inputs.size());
  std::vector<ValueId> inputs;
  for (const std::string& name : node.inputs) inputs.push_back(lookup(name));
  return inputs;
}

ValueId ModelBuilder::parameter(const std::string& label, const ParameterSpec& spec) {
  const TensorType type{graph_.precision().compute, spec.shape};
  if (!spec.tied_to.empty()) {
    const bool known = std::any_of(parameters_.begin(), parameters_.end(),
                                   [&](const Parameter& p) { return p.name == spec.tied_to; });
    if (!known)
      compile_error("{}: tied to '{}', which is no parameter of a node before it", label, spec.tied_to);
    return graph_.persistent(spec.tied_to, type, Role::kParameter);
  }
  const std::string name = label + "." + spec.name;
  if (!is_utf8(name)) compile_error("{}: the name is not UTF-8", name);
  const size_t values = graph_.values().size();
  const ValueId id = graph_.persistent(name, type, Role::kParameter);
  if (graph_.values().size() == values)
    compile_error("{}: another node has a parameter of this name, by its block's name and its own", name);
  graph_.value(id).requires_grad = true;
  parameters_.push_back({name, spec});
  return id;
}

void ModelBuilder::add_parameters(const fb::NodeT& node, const OpDef& def, const std::string& label,
                                  std::vector<ValueId>& inputs) {
  const KernelInfo& kernel = def.kernel();
  inputs.resize(kernel.inputs.size(), kNoValue);
  std::vector<const TensorType*> types;
  for (const ValueId id : inputs) types.push_back(id == kNoValue ? nullptr : &graph_.value(id).type);
  const OpCall call(def, node.op, label, graph_, types);
  for (const ParameterSpec& spec : def.parameters(call)) {
    call.require_not_negative("init_std", spec.init_std);
    inputs[static_cast<size_t>(kernel.input_index(spec.name))] = parameter(label, spec);
  }
}

void ModelBuilder::add_node(const fb::NodeT& node, const std::string& prefix) {
  constexpr size_t kMaxNodes = 200'000;
  if (graph_.nodes().size() >= kMaxNodes)
    compile_error("{}{}: the unrolled model has more than {} nodes", prefix, node.name, kMaxNodes);
  const std::string label = prefix + node.name;
  const OpDef* def = find_model_op(node.op.type);
  if (def == nullptr)
    compile_error("{}: {} is not an op that models are written in", label, op_name(node.op.type));
  if (const std::string_view attribute = unknown_attribute(node.op); !attribute.empty())
    compile_error("{} ({}): unknown enumerator of {}", label, op_name(node.op.type), attribute);
  std::vector<ValueId> inputs = data_inputs(node, *def, label);
  const KernelInfo& kernel = def->kernel();

  if (node.op.type == fb::Op::CrossEntropy) logits_ = inputs[0];
  const bool skip = def->is_loss && (mode_ == Mode::kPrefill ||
                                     (mode_ == Mode::kEvaluate && node.op.type != fb::Op::CrossEntropy));
  if (skip) return;
  if (node.op.type == fb::Op::Dropout && mode_ != Mode::kTrain) return publish(node, kernel, {inputs[0]});
  if (mode_ == Mode::kPrefill && node.name == logits_node_) {
    const int selected = graph_.add_node(find_op("select_token"), make_attrs<fb::SelectTokenT>(),
                                         label + ".select", {inputs[0], train_state(graph_)});
    inputs[0] = graph_.nodes()[static_cast<size_t>(selected)].outputs[0];
  }

  fb::OpUnion attrs = node.op;
  if (attrs.type == fb::Op::Dropout) attrs.AsDropout()->stream = next_stream_++;
  if (def->parameters != nullptr) add_parameters(node, *def, label, inputs);
  if (const int state = kernel.input_index("state"); state >= 0) {
    inputs.resize(kernel.inputs.size(), kNoValue);
    inputs[static_cast<size_t>(state)] = train_state(graph_);
  }
  const int added = graph_.add_node(*def, attrs, label, inputs);
  const std::vector<ValueId> outputs = graph_.nodes()[static_cast<size_t>(added)].outputs;
  if (node.op.type == fb::Op::CrossEntropy) cross_entropies_.push_back(outputs[0]);
  if (def->is_loss && node.op.type != fb::Op::CrossEntropy) auxiliary_losses_.push_back(outputs[0]);
  publish(node, kernel, outputs);
}

}  // namespace moec
