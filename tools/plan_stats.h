// What a plan says about memory and work, added up.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "plan_generated.h"

namespace moec::tools {

constexpr size_t kBufferKinds = static_cast<size_t>(fb::BufferKind::MAX) + 1;

/// Bytes by fb::BufferKind.
using BytesByKind = std::array<uint64_t, kBufferKinds>;
uint64_t bytes_of(const BytesByKind& bytes, fb::BufferKind kind);
uint64_t total(const BytesByKind& bytes);

/// Memory that outlives programs.
BytesByKind persistent_bytes(const fb::PlanT& plan);

/// Size of the arena of this kind, 0 when the plan has none.
uint64_t arena_size(const fb::PlanT& plan, fb::ArenaKind kind);

/// Bytes of all arenas.
uint64_t device_bytes(const fb::PlanT& plan);

/// Tokens that an optimizer step trains on.
uint64_t tokens_per_step(const fb::RecipeT& recipe);

/// How often an optimizer step runs a program of this kind.
uint64_t runs_per_step(const fb::PlanT& plan, fb::ProgramKind kind);

/// Predicted time of an optimizer step, and of that what is spent on computing again.
struct PredictedTime {
  double seconds = 0, again = 0;
  uint64_t instructions_again = 0;  // of a micro-batch
};
PredictedTime predicted_time(const fb::PlanT& plan);

/// Activation memory of one program.
struct ProgramMemory {
  uint64_t arena_peak = 0;  // the highest end of a buffer: what the program needs of the arena
  uint64_t live_peak = 0;  // the most bytes live at one instruction, in steps of the alignment: a lower bound
  size_t peak_instruction = 0;                   // where that is (the first one)
  BytesByKind at_peak{};                         // live there
  BytesByKind most{};                            // the most of each kind at any instruction
  std::vector<const fb::BufferT*> live_at_peak;  // largest first
};
ProgramMemory program_memory(const fb::PlanT& plan, size_t program);

/// Index of the program, -1 when the plan has none of this kind.
int program_index(const fb::PlanT& plan, fb::ProgramKind kind);

/// Work of one kernel over an optimizer step.
struct KernelCost {
  std::string kernel;
  uint64_t calls = 0;
  double flops = 0;
  double bytes = 0;
  double seconds = 0;  // predicted
};

/// Kernels of grad_accum runs of Accumulate and one of Apply, the most FLOPs first.
std::vector<KernelCost> step_costs(const fb::PlanT& plan);

}  // namespace moec::tools
