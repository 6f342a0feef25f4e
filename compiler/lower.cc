#include "compiler/lower.h"

#include <algorithm>

#include "compiler/memory_problem.h"
#include "compiler/op.h"
#include "kernels/beside.h"
#include "planner/planner.h"
#include "schema/version.h"

namespace moec {
namespace {

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

/// How many nodes behind a gradient of parameters a device may run before it or beside it: where it is small,
/// as it may wait for others to share a launch with; of experts, those up to the router's.
uint32_t lag_of(const Graph& graph, const Node& node) {
  constexpr uint32_t kSmallLag = 32, kExpertsLag = 6;
  if (std::ranges::any_of(node.outputs, [&](ValueId id) { return is_activation(graph, id); })) return 0;
  const Work work = work_of(graph, node);
  if (is_small_call(work.flops, work.bytes)) return kSmallLag;
  return is_large_call_beside(node.def->key, work.flops, work.bytes) ? kExpertsLag : 0;
}

/// The placement that lets nodes lag if that takes at most `spare` bytes more than the lowest one.
planner::Placement place(const Graph& graph, uint64_t spare) {
  planner::Problem problem = memory_problem(graph);
  planner::Placement lowest = planner::plan_memory(problem);
  if (spare == 0) return lowest;
  for (size_t i = 0; i < problem.steps.size(); ++i) problem.steps[i].lag = lag_of(graph, graph.nodes()[i]);
  planner::Placement kept = planner::plan_memory(problem);
  return kept.peak <= lowest.peak + spare ? kept : lowest;
}

}  // namespace

PlanWriter::PlanWriter(const Storage& storage, const CostModel* costs) : costs_(costs) {
  if (costs_ != nullptr) plan_.cost_model = costs_->device();
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

void PlanWriter::add_program(fb::ProgramKind kind, const Graph& graph, uint64_t spare) {
  const planner::Placement placement = place(graph, spare);
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
    const Work work = work_of(graph, node);
    instruction->flops = static_cast<uint64_t>(work.flops);
    instruction->bytes = static_cast<uint64_t>(work.bytes);
    if (costs_ != nullptr) instruction->seconds = costs_->seconds(graph, node);
    instruction->recompute = node.recompute;
    program->instructions.push_back(std::move(instruction));
  }
  plan_.programs.push_back(std::move(program));
  plan_.activations_lower_bound = std::max(plan_.activations_lower_bound, placement.lower_bound);
}

fb::PlanT PlanWriter::finish() && {
  plan_.version = kPlanVersion;
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
