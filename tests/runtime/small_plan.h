// A sound plan that is small enough to reason about, built by hand.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/train_state.h"
#include "plan_generated.h"
#include "schema/plan_file.h"
#include "schema/version.h"

namespace moec::test {

/// Tensor ids of small_plan().
enum SmallTensor { kWeight, kWeightFilled, kThree, kSum, kSilu, kState };

class SmallPlanBuilder {
 public:
  /// A buffer and one tensor that covers it; returns the tensor's id. Transient buffers live from `first` to
  /// `last` in program 1.
  int tensor(const char* name, fb::ArenaKind arena, uint64_t offset, fb::DType dtype,
             std::vector<uint64_t> shape, uint32_t version, uint32_t first = 0, uint32_t last = 0) {
    const bool transient = arena == fb::ArenaKind::Activations;
    auto buffer = std::make_unique<fb::BufferT>();
    buffer->name = name;
    buffer->kind = transient ? fb::BufferKind::Temp : fb::BufferKind::Io;
    buffer->arena = arena;
    buffer->offset = offset;
    buffer->size = static_cast<uint64_t>(dtype_size(dtype));
    for (const uint64_t extent : shape) buffer->size *= extent;
    buffer->program = transient ? 1 : -1;
    buffer->first = first;
    buffer->last = last;
    plan.buffers.push_back(std::move(buffer));
    return version_of(static_cast<uint32_t>(plan.buffers.size() - 1), name, dtype, std::move(shape), version);
  }

  /// Another tensor on the same buffer.
  int version_of(uint32_t buffer, const char* name, fb::DType dtype, std::vector<uint64_t> shape,
                 uint32_t version) {
    auto tensor = std::make_unique<fb::TensorT>();
    tensor->name = name;
    tensor->dtype = dtype;
    tensor->shape = std::move(shape);
    tensor->buffer = buffer;
    tensor->version = version;
    plan.tensors.push_back(std::move(tensor));
    return static_cast<int>(plan.tensors.size() - 1);
  }

  void arena(fb::ArenaKind kind, uint64_t size) {
    auto arena = std::make_unique<fb::ArenaT>();
    arena->kind = kind;
    arena->size = size;
    plan.arenas.push_back(std::move(arena));
  }

  void program(fb::ProgramKind kind) {
    plan.programs.push_back(std::make_unique<fb::ProgramT>());
    plan.programs.back()->kind = kind;
  }

  template <class Attrs>
  void instruction(const char* kernel, Attrs attrs, std::vector<int> inputs, std::vector<int> outputs) {
    auto instruction = std::make_unique<fb::InstructionT>();
    instruction->kernel = kernel;
    instruction->label = std::string("small.") + kernel;
    instruction->op.Set(std::move(attrs));
    instruction->inputs = std::move(inputs);
    instruction->outputs = std::move(outputs);
    instruction->flops = 4;
    plan.programs.back()->instructions.push_back(std::move(instruction));
  }

  fb::PlanT plan;
};

/// init: weight = 2. evaluate: three = 3; sum = weight + three; silu = silu(sum). All f32 [4].
inline fb::PlanT small_plan() {
  using fb::ArenaKind;
  constexpr fb::DType kF32 = fb::DType::F32;
  SmallPlanBuilder b;
  b.plan.version = kPlanVersion;
  b.plan.model = std::make_unique<fb::ModelT>();
  b.plan.model->name = "small";
  b.plan.recipe = std::make_unique<fb::RecipeT>();
  b.plan.vocab_size = 4;
  b.arena(ArenaKind::Params, 256);
  b.arena(ArenaKind::State, 1024);
  b.arena(ArenaKind::Activations, 256);
  b.tensor("weight", ArenaKind::Params, 0, kF32, {4}, 0);
  b.version_of(0, "weight.1", kF32, {4}, 1);
  b.tensor("three", ArenaKind::Activations, 0, kF32, {4}, 0, 0, 1);
  b.tensor("sum", ArenaKind::State, 0, kF32, {4}, 1);
  b.tensor("silu", ArenaKind::State, 256, kF32, {4}, 1);
  b.tensor("state", ArenaKind::State, 512, fb::DType::U8, {sizeof(TrainState)}, 0);

  b.program(fb::ProgramKind::Init);
  fb::FillT two, three;
  two.value = 2;
  three.value = 3;
  b.instruction("fill", two, {}, {kWeightFilled});
  b.program(fb::ProgramKind::Evaluate);
  b.instruction("fill", three, {}, {kThree});
  b.instruction("add", fb::AddT{}, {kWeight, kThree}, {kSum});
  b.instruction("silu", fb::SiluT{}, {kSum}, {kSilu});

  auto parameter = std::make_unique<fb::ParameterT>();
  parameter->name = "weight";
  parameter->param = kWeight;
  b.plan.parameters.push_back(std::move(parameter));
  b.plan.io = std::make_unique<fb::InterfaceT>();
  b.plan.io->train_state = kState;
  b.plan.activations_lower_bound = 256;
  return std::move(b.plan);
}

/// The plan as a file's bytes.
inline std::string plan_bytes(const fb::PlanT& plan) {
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  return {bytes.begin(), bytes.end()};
}

}  // namespace moec::test
