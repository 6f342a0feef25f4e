#include "tools/plan_stats.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "planner/planner.h"

namespace moec::tools {
namespace {

uint64_t aligned(uint64_t bytes) {
  return (bytes + planner::kAlignment - 1) / planner::kAlignment * planner::kAlignment;
}

std::vector<const fb::BufferT*> buffers_of(const fb::PlanT& plan, size_t program) {
  std::vector<const fb::BufferT*> buffers;
  for (const auto& buffer : plan.buffers)
    if (buffer->program == static_cast<int>(program)) buffers.push_back(buffer.get());
  return buffers;
}

/// Live bytes by kind at every instruction, from where buffers start and end.
std::vector<BytesByKind> live_bytes(const std::vector<const fb::BufferT*>& buffers, size_t instructions) {
  std::vector<BytesByKind> changes(instructions + 1), live(instructions);
  for (const fb::BufferT* buffer : buffers) {
    const auto kind = static_cast<size_t>(buffer->kind);
    changes[buffer->first][kind] += aligned(buffer->size);
    changes[buffer->last + size_t{1}][kind] -= aligned(buffer->size);  // modulo 2^64, as is the sum
  }
  BytesByKind now{};
  for (size_t i = 0; i < instructions; ++i) {
    for (size_t kind = 0; kind < kBufferKinds; ++kind) now[kind] += changes[i][kind];
    live[i] = now;
  }
  return live;
}

}  // namespace

uint64_t bytes_of(const BytesByKind& bytes, fb::BufferKind kind) { return bytes[static_cast<size_t>(kind)]; }

uint64_t total(const BytesByKind& bytes) { return std::accumulate(bytes.begin(), bytes.end(), uint64_t{0}); }

BytesByKind persistent_bytes(const fb::PlanT& plan) {
  BytesByKind bytes{};
  for (const auto& buffer : plan.buffers)
    if (buffer->program < 0) bytes[static_cast<size_t>(buffer->kind)] += buffer->size;
  return bytes;
}

uint64_t arena_size(const fb::PlanT& plan, fb::ArenaKind kind) {
  for (const auto& arena : plan.arenas)
    if (arena->kind == kind) return arena->size;
  return 0;
}

uint64_t device_bytes(const fb::PlanT& plan) {
  uint64_t bytes = 0;
  for (const auto& arena : plan.arenas) bytes += arena->size;
  return bytes;
}

uint64_t tokens_per_step(const fb::RecipeT& recipe) {
  return uint64_t{recipe.batch_size} * recipe.seq_len * recipe.grad_accum;
}

uint64_t runs_per_step(const fb::PlanT& plan, fb::ProgramKind kind) {
  if (kind == fb::ProgramKind::Accumulate) return plan.recipe->grad_accum;
  return kind == fb::ProgramKind::Apply ? 1 : 0;
}

PredictedTime predicted_time(const fb::PlanT& plan) {
  PredictedTime time;
  for (const auto& program : plan.programs) {
    const uint64_t runs = runs_per_step(plan, program->kind);
    if (runs == 0) continue;
    for (const auto& instruction : program->instructions) {
      time.seconds += static_cast<double>(runs) * instruction->seconds;
      if (instruction->recompute) time.again += static_cast<double>(runs) * instruction->seconds;
      time.instructions_again += instruction->recompute;
    }
  }
  return time;
}

ProgramMemory program_memory(const fb::PlanT& plan, size_t program) {
  ProgramMemory memory;
  const auto buffers = buffers_of(plan, program);
  const auto live = live_bytes(buffers, plan.programs[program]->instructions.size());
  for (size_t i = 0; i < live.size(); ++i) {
    for (size_t kind = 0; kind < kBufferKinds; ++kind)
      memory.most[kind] = std::max(memory.most[kind], live[i][kind]);
    if (total(live[i]) <= memory.live_peak) continue;
    memory.live_peak = total(live[i]);
    memory.peak_instruction = i;
    memory.at_peak = live[i];
  }
  for (const fb::BufferT* buffer : buffers) {
    memory.arena_peak = std::max(memory.arena_peak, aligned(buffer->offset + buffer->size));
    if (buffer->first <= memory.peak_instruction && memory.peak_instruction <= buffer->last)
      memory.live_at_peak.push_back(buffer);
  }
  std::stable_sort(memory.live_at_peak.begin(), memory.live_at_peak.end(),
                   [](const auto* a, const auto* b) { return a->size > b->size; });
  return memory;
}

int program_index(const fb::PlanT& plan, fb::ProgramKind kind) {
  for (size_t i = 0; i < plan.programs.size(); ++i)
    if (plan.programs[i]->kind == kind) return static_cast<int>(i);
  return -1;
}

std::vector<KernelCost> step_costs(const fb::PlanT& plan) {
  std::map<std::string, KernelCost> by_kernel;
  for (const auto& program : plan.programs) {
    const uint64_t runs = runs_per_step(plan, program->kind);
    if (runs == 0) continue;
    for (const auto& instruction : program->instructions) {
      KernelCost& cost = by_kernel[instruction->kernel];
      cost.kernel = instruction->kernel;
      cost.calls += runs;
      cost.flops += static_cast<double>(runs) * static_cast<double>(instruction->flops);
      cost.bytes += static_cast<double>(runs) * static_cast<double>(instruction->bytes);
      cost.seconds += static_cast<double>(runs) * instruction->seconds;
    }
  }
  std::vector<KernelCost> costs;
  for (auto& [kernel, cost] : by_kernel) costs.push_back(std::move(cost));
  std::sort(costs.begin(), costs.end(), [](const auto& a, const auto& b) {
    return std::tie(a.flops, a.bytes, b.kernel) > std::tie(b.flops, b.bytes, a.kernel);
  });
  return costs;
}

}  // namespace moec::tools
