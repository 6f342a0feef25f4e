#include "compiler/lower.h"

#include <algorithm>

#include "compiler/op.h"
#include "planner/planner.h"

namespace moec {
namespace {

bool is_activation(const Graph& graph, ValueId id) {
  return id != kNoValue && graph.value(id).role == Role::kActivation;
}

TensorView shape_view(const Graph& graph, ValueId id) {
  TensorView view;
  if (id == kNoValue) return view;
  const TensorType& type = graph.value(id).type;
  view.dtype = type.dtype;
  view.rank = static_cast<int>(type.shape.size());
  std::copy(type.shape.begin(), type.shape.end(), view.shape.begin());
  return view;
}

uint64_t workspace_bytes(const Graph& graph, const Node& node) {
  KernelCall call;
  call.op = &node.attrs;
  for (const ValueId id : node.inputs) call.inputs.push_back(shape_view(graph, id));
  for (const ValueId id : node.outputs) call.outputs.push_back(shape_view(graph, id));
  return node.def->kernel().workspace(call);
}

planner::Step make_step(const Graph& graph, const Node& node) {
  planner::Step step;
  step.workspace = workspace_bytes(graph, node);
  for (const ValueId id : node.inputs)
    if (is_activation(graph, id)) step.reads.push_back(id);
  for (const ValueId id : node.outputs)
    if (is_activation(graph, id)) step.writes.push_back(id);
  for (const InPlace& pair : node.def->kernel().in_place) {
    const ValueId out = node.outputs[static_cast<size_t>(pair.output)],
                  in = node.inputs[static_cast<size_t>(pair.input)];
    if (is_activation(graph, out) && is_activation(graph, in))
      step.shares.push_back({out, in, pair.required});
  }
  return step;
}

planner::Problem make_problem(const Graph& graph) {
  planner::Problem problem;
  for (const Value& value : graph.values())
    problem.sizes.push_back(static_cast<uint64_t>(value.type.bytes()));
  for (const Node& node : graph.nodes()) problem.steps.push_back(make_step(graph, node));
  return problem;
}

/// Activations written by the forward phase and read by the backward phase are `saved`, the others `temp`.
std::vector<bool> saved_values(const Graph& graph) {
  std::vector<bool> saved(graph.values().size(), false);
  for (const Node& node : graph.nodes())
    for (const ValueId id : node.inputs)
      if (is_activation(graph, id) && node.phase == Phase::kBackward)
        if (const int producer = graph.value(id).producer; producer >= 0)
          saved[static_cast<size_t>(id)] =
              saved[static_cast<size_t>(id)] ||
              graph.nodes()[static_cast<size_t>(producer)].phase == Phase::kForward;
  return saved;
}

/// Bytes that an instruction has to move at least: every operand once.
uint64_t operand_bytes(const Graph& graph, const Node& node) {
  int64_t bytes = 0;
  for (const auto* list : {&node.inputs, &node.outputs})
    for (const ValueId id : *list)
      if (id != kNoValue) bytes += graph.value(id).type.bytes();
  return static_cast<uint64_t>(bytes);
}

uint64_t node_flops(const Graph& graph, const Node& node) {
  std::vector<const TensorType*> types;
  for (const ValueId id : node.inputs) types.push_back(id == kNoValue ? nullptr : &graph.value(id).type);
  OpCall call(*node.def, node.attrs, node.label, graph, types);
  for (size_t i = 0; i < node.outputs.size(); ++i)
    if (node.outputs[i] != kNoValue) call.set_output(static_cast<int>(i), graph.value(node.outputs[i]).type);
  const double flops =
      node.def->flops != nullptr ? node.def->flops(call) : static_cast<double>(call.output(0).elements());
  return static_cast<uint64_t>(flops);
}

}  // namespace

PlanWriter::PlanWriter(const Storage& storage) {
  for (const fb::BufferT& buffer : storage.buffers)
    plan_.buffers.push_back(std::make_unique<fb::BufferT>(buffer));
  for (const StorageSlot& slot : storage.slots)
    persistent_[slot.name] = add_tensor(slot.name, slot.type, slot.buffer, slot.offset, 0);
}

int PlanWriter::tensor_id(const std::string& name) const {
  const auto it = persistent_.find(name);
  return it == persistent_.end() ? -1 : it->second;
}

int PlanWriter::add_tensor(const std::string& name, const TensorType& type, uint32_t buffer, uint64_t offset,
                           int version) {
  auto tensor = std::make_unique<fb::TensorT>();
  tensor->name = name;
  tensor->dtype = type.dtype;
  tensor->shape.assign(type.shape.begin(), type.shape.end());
  tensor->buffer = buffer;
  tensor->offset = offset;
  tensor->version = static_cast<uint32_t>(version);
  plan_.tensors.push_back(std::move(tensor));
  return static_cast<int>(plan_.tensors.size() - 1);
}

void PlanWriter::add_program(fb::ProgramKind kind, const Graph& graph) {
  const planner::Placement placement = planner::plan_memory(make_problem(graph));
  const std::vector<bool> saved = saved_values(graph);
  const auto first_buffer = static_cast<uint32_t>(plan_.buffers.size());
  for (size_t i = 0; i < placement.buffers.size(); ++i) {
    auto buffer = std::make_unique<fb::BufferT>();
    buffer->kind = fb::BufferKind::Temp;
    buffer->arena = fb::ArenaKind::Activations;
    buffer->offset = placement.offsets[i];
    buffer->size = placement.buffers[i].size;
    buffer->program = static_cast<int>(plan_.programs.size());
    buffer->first = placement.buffers[i].first;
    buffer->last = placement.buffers[i].last;
    plan_.buffers.push_back(std::move(buffer));
  }

  std::vector<int> tensor_of(graph.values().size(), -1);
  for (size_t id = 0; id < graph.values().size(); ++id) {
    const Value& value = graph.values()[id];
    if (value.role != Role::kActivation) {
      const auto& base = *plan_.tensors[static_cast<size_t>(persistent_.at(value.name))];
      tensor_of[id] = value.version == 0
                          ? persistent_.at(value.name)
                          : add_tensor(value.name, value.type, base.buffer, base.offset, value.version);
    } else if (const int b = placement.buffer_of_value[id]; b >= 0) {
      const uint32_t index = first_buffer + static_cast<uint32_t>(b);
      fb::BufferT& buffer = *plan_.buffers[index];
      if (buffer.name.empty()) buffer.name = value.name;
      if (saved[id]) buffer.kind = fb::BufferKind::Saved;
      tensor_of[id] = add_tensor(value.name, value.type, index, 0, 0);
    }
  }

  auto program = std::make_unique<fb::ProgramT>();
  program->kind = kind;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    auto instruction = std::make_unique<fb::InstructionT>();
    instruction->kernel = node.def->key;
    instruction->op = node.attrs;
    instruction->label = node.label;
    for (const ValueId id : node.inputs)
      instruction->inputs.push_back(id == kNoValue ? -1 : tensor_of[static_cast<size_t>(id)]);
    for (const ValueId id : node.outputs)
      instruction->outputs.push_back(id == kNoValue ? -1 : tensor_of[static_cast<size_t>(id)]);
    if (const int b = placement.buffer_of_workspace[i]; b >= 0) {
      const uint32_t index = first_buffer + static_cast<uint32_t>(b);
      fb::BufferT& buffer = *plan_.buffers[index];
      buffer.kind = fb::BufferKind::Workspace;
      buffer.name = node.label + ".workspace";
      instruction->workspace =
          add_tensor(buffer.name, {fb::DType::U8, {static_cast<int64_t>(buffer.size)}}, index, 0, 0);
    }
    instruction->flops = node_flops(graph, node);
    instruction->bytes = operand_bytes(graph, node);
    program->instructions.push_back(std::move(instruction));
  }
  plan_.programs.push_back(std::move(program));
  plan_.activations_lower_bound = std::max(plan_.activations_lower_bound, placement.lower_bound);
}

fb::PlanT PlanWriter::finish() && {
  for (const fb::ArenaKind kind : fb::EnumValuesArenaKind()) {
    auto arena = std::make_unique<fb::ArenaT>();
    arena->kind = kind;
    for (const auto& buffer : plan_.buffers) {
      const uint64_t end = (buffer->offset + buffer->size + planner::kAlignment - 1) / planner::kAlignment *
                           planner::kAlignment;
      if (buffer->arena == kind) arena->size = std::max(arena->size, end);
    }
    plan_.arenas.push_back(std::move(arena));
  }
  return std::move(plan_);
}

}  // namespace moec
