#include "bench/single_kernel.h"

#include <algorithm>
#include <set>

#include "kernels/catalog.h"
#include "runtime/plan.h"

namespace moec::bench {
namespace {

constexpr fb::ProgramKind kProgram = fb::ProgramKind::Evaluate;
constexpr uint64_t kAlignment = 256;

/// A buffer of the tensor's size behind all others; returns its index.
uint32_t add_buffer(fb::PlanT& plan, const fb::TensorT& tensor) {
  fb::ArenaT& arena = *plan.arenas.front();
  auto buffer = std::make_unique<fb::BufferT>();
  buffer->arena = arena.kind;
  buffer->offset = arena.size;
  buffer->size = static_cast<uint64_t>(dtype_size(tensor.dtype));
  for (const uint64_t extent : tensor.shape) buffer->size *= extent;
  arena.size = (arena.size + buffer->size + kAlignment - 1) / kAlignment * kAlignment;
  plan.buffers.push_back(std::move(buffer));
  return static_cast<uint32_t>(plan.buffers.size() - 1);
}

/// The tensors keep their ids; those that the instruction does not name are never looked at.
fb::PlanT plan_of_one(const fb::PlanT& from, const fb::InstructionT& instruction) {
  fb::PlanT plan;
  plan.arenas.push_back(std::make_unique<fb::ArenaT>());
  plan.arenas.front()->kind = fb::ArenaKind::Activations;
  for (const auto& tensor : from.tensors) plan.tensors.push_back(std::make_unique<fb::TensorT>(*tensor));

  std::set<int> operands(instruction.inputs.begin(), instruction.inputs.end());
  operands.insert(instruction.outputs.begin(), instruction.outputs.end());
  operands.insert(instruction.workspace);
  operands.erase(-1);
  for (const int id : operands) {
    fb::TensorT& tensor = *plan.tensors[static_cast<size_t>(id)];
    tensor.offset = 0;
    tensor.buffer = add_buffer(plan, tensor);
  }
  for (const InPlace& pair : find_kernel(instruction.kernel)->in_place) {
    const int output = instruction.outputs[static_cast<size_t>(pair.output)];
    const int input = instruction.inputs[static_cast<size_t>(pair.input)];
    if (pair.required && output >= 0 && input >= 0)
      plan.tensors[static_cast<size_t>(output)]->buffer = plan.tensors[static_cast<size_t>(input)]->buffer;
  }
  plan.programs.push_back(std::make_unique<fb::ProgramT>());
  plan.programs.front()->kind = kProgram;
  plan.programs.front()->instructions.push_back(std::make_unique<fb::InstructionT>(instruction));
  return plan;
}

}  // namespace

Result<SingleKernel> SingleKernel::create(const fb::PlanT& plan, const fb::InstructionT& instruction,
                                          const Lane& lane) {
  auto loaded = std::make_shared<runtime::LoadedPlan>();
  loaded->source = instruction.kernel;
  loaded->plan = plan_of_one(plan, instruction);
  auto device = lane.make_device();
  MOEC_RETURN_IF_ERROR(device->load(std::move(loaded)));
  return SingleKernel(std::move(device));
}

Result<double> SingleKernel::run() { return device_->run_instruction(kProgram, 0); }

}  // namespace moec::bench
