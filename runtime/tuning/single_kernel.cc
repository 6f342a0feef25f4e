#include "runtime/tuning/single_kernel.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "kernels/catalog.h"
#include "runtime/plan.h"

namespace moec::tuning {
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

/// What the instruction names, each once.
std::set<int> operands_of(const fb::InstructionT& instruction) {
  std::set<int> operands(instruction.inputs.begin(), instruction.inputs.end());
  operands.insert(instruction.outputs.begin(), instruction.outputs.end());
  operands.insert(instruction.workspace);
  operands.erase(-1);
  return operands;
}

/// Operands of the instruction as new tensors of `plan`, by their ids in `from`.
std::map<int, int> add_operands(fb::PlanT& plan, const fb::PlanT& from, const fb::InstructionT& instruction) {
  std::map<int, int> ids;
  for (const int id : operands_of(instruction)) {
    auto tensor = std::make_unique<fb::TensorT>(*from.tensors[static_cast<size_t>(id)]);
    tensor->offset = 0;
    tensor->buffer = add_buffer(plan, *tensor);
    ids[id] = static_cast<int>(plan.tensors.size());
    plan.tensors.push_back(std::move(tensor));
  }
  for (const InPlace& pair : find_kernel(instruction.kernel)->in_place) {
    const int output = instruction.outputs[static_cast<size_t>(pair.output)];
    const int input = instruction.inputs[static_cast<size_t>(pair.input)];
    if (pair.required && output >= 0 && input >= 0)
      plan.tensors[static_cast<size_t>(ids[output])]->buffer =
          plan.tensors[static_cast<size_t>(ids[input])]->buffer;
  }
  return ids;
}

/// The instruction on other tensors, by a variant of its plan, counted from 1.
std::unique_ptr<fb::InstructionT> renamed(const fb::InstructionT& instruction, const std::map<int, int>& ids,
                                          uint32_t variant) {
  auto result = std::make_unique<fb::InstructionT>(instruction);
  result->variant = variant;
  const auto rename = [&](int& id) {
    if (id >= 0) id = ids.at(id);
  };
  std::ranges::for_each(result->inputs, rename);
  std::ranges::for_each(result->outputs, rename);
  rename(result->workspace);
  return result;
}

uint64_t operand_bytes(const fb::PlanT& plan, const fb::InstructionT& instruction) {
  fb::PlanT scratch;
  scratch.arenas.push_back(std::make_unique<fb::ArenaT>());
  add_operands(scratch, plan, instruction);
  return scratch.arenas.front()->size;
}

}  // namespace

Result<SingleKernel> SingleKernel::create(const fb::PlanT& plan, const fb::InstructionT& instruction,
                                          const Work& work, const Lane& lane, const Demand& demand) {
  const Repetition repetition = lane.repetition(work, operand_bytes(plan, instruction));
  auto loaded = std::make_shared<runtime::LoadedPlan>();
  loaded->source = instruction.kernel;
  fb::PlanT& repeated = loaded->plan;
  if (!demand.variant.empty()) {
    repeated.variants = {demand.variant};
    repeated.tuned_for = demand.model;
  }
  repeated.arenas.push_back(std::make_unique<fb::ArenaT>());
  repeated.arenas.front()->kind = fb::ArenaKind::Activations;
  std::vector<std::map<int, int>> copies;
  for (int i = 0; i < repetition.copies; ++i) copies.push_back(add_operands(repeated, plan, instruction));
  repeated.programs.push_back(std::make_unique<fb::ProgramT>());
  repeated.programs.front()->kind = kProgram;
  for (int i = 0; i < repetition.runs; ++i)
    repeated.programs.front()->instructions.push_back(
        renamed(instruction, copies[static_cast<size_t>(i % repetition.copies)],
                static_cast<uint32_t>(repeated.variants.size())));
  MOEC_ASSIGN_OR_RETURN(auto device, lane.make_device());
  MOEC_RETURN_IF_ERROR(device->load(std::move(loaded)));
  return SingleKernel(std::move(device), std::move(copies), repetition.runs);
}

Status SingleKernel::write(int tensor, std::span<const std::byte> bytes) {
  for (const std::map<int, int>& ids : copies_)
    MOEC_RETURN_IF_ERROR(device_->write(ids.at(tensor), 0, bytes));
  return {};
}

Result<double> SingleKernel::run() {
  if (runs_ == 1) return device_->run_instruction(kProgram, 0);
  const auto start = std::chrono::steady_clock::now();
  MOEC_RETURN_IF_ERROR(device_->run(kProgram));
  MOEC_RETURN_IF_ERROR(device_->wait());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / runs_;
}

}  // namespace moec::tuning
