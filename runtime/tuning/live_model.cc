#include "runtime/tuning/live_model.h"

#include <random>
#include <set>
#include <span>

#include "kernels/train_state.h"

namespace moec::tuning {
namespace {

using fb::ProgramKind;

/// Bytes that the tensor takes.
size_t size_of(const fb::TensorT& tensor) {
  auto size = static_cast<size_t>(dtype_size(tensor.dtype));
  for (const uint64_t extent : tensor.shape) size *= extent;
  return size;
}

}  // namespace

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size) {
  std::mt19937 generator(1);
  std::uniform_int_distribution<int32_t> draw(0, static_cast<int32_t>(vocab_size - 1));
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) token = draw(generator);
  return tokens;
}

Result<LiveModel> LiveModel::create(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane) {
  MOEC_ASSIGN_OR_RETURN(auto device, lane.make_device());
  MOEC_RETURN_IF_ERROR(device->load(std::move(plan)));
  LiveModel model(std::move(device));
  MOEC_RETURN_IF_ERROR(model.start());
  return model;
}

Status LiveModel::start() {
  const fb::PlanT& plan = this->plan().plan;
  if (plan.io == nullptr || plan.io->window < 0)
    return input_error(this->plan().source + ": the plan has no token window to draw batches from");
  const auto window =
      random_tokens(static_cast<int64_t>(this->plan().tensor(plan.io->window)->shape[0]), plan.vocab_size);
  const TrainState state = {.seed = plan.recipe->seed,
                            .window_tokens = static_cast<int64_t>(window.size()),
                            .base_lr = plan.recipe->lr};
  MOEC_RETURN_IF_ERROR(device_->write(plan.io->window, 0, std::as_bytes(std::span(window))));
  MOEC_RETURN_IF_ERROR(device_->write(plan.io->train_state, 0, std::as_bytes(std::span(&state, 1))));
  MOEC_RETURN_IF_ERROR(device_->run(ProgramKind::Init));
  MOEC_RETURN_IF_ERROR(device_->run(ProgramKind::Accumulate));
  return device_->run(ProgramKind::Apply);
}

Result<std::vector<Contents>> LiveModel::read_inputs(const fb::InstructionT& instruction) {
  std::vector<Contents> operands;
  for (const int id : std::set<int>(instruction.inputs.begin(), instruction.inputs.end())) {
    if (id < 0) continue;
    Contents operand = {.tensor = id, .bytes = std::vector<std::byte>(size_of(*plan().tensor(id)))};
    MOEC_RETURN_IF_ERROR(device_->read(id, 0, operand.bytes));
    operands.push_back(std::move(operand));
  }
  return operands;
}

Result<std::vector<Contents>> LiveModel::capture(ProgramKind program, size_t index) {
  for (size_t i = 0; i < index; ++i) MOEC_RETURN_IF_ERROR(device_->run_instruction(program, i).status());
  return read_inputs(*plan().program(program)->instructions[index]);
}

}  // namespace moec::tuning
