#include "mutations.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "kernels/catalog.h"

namespace moec::planner {
namespace {

template <class Vector>
auto& any(const Vector& items, Random& random) {
  return *items[random() % items.size()];
}

/// The accumulate program, the second of the sample plans.
constexpr int kAccumulate = 1;
fb::InstructionT& any_instruction(fb::PlanT& plan, Random& random) {
  return any(plan.programs[kAccumulate]->instructions, random);
}

/// An instruction of any program that reads something.
fb::InstructionT& any_reader(fb::PlanT& plan, Random& random) {
  while (true)
    if (fb::InstructionT& i = any(any(plan.programs, random).instructions, random); !i.inputs.empty())
      return i;
}

bool transient(const fb::PlanT& plan, int tensor) {
  return tensor >= 0 && plan.buffers[plan.tensors[tensor]->buffer]->program >= 0;
}

uint64_t bytes_of(const fb::TensorT& tensor) {
  uint64_t bytes = static_cast<uint64_t>(dtype_size(tensor.dtype));
  for (uint64_t dim : tensor.shape) bytes *= dim;
  return bytes;
}

/// A buffer of a program, which is never empty in the sample plans.
fb::BufferT& any_transient_buffer(fb::PlanT& plan, Random& random) {
  while (true)
    if (fb::BufferT& buffer = any(plan.buffers, random); buffer.program >= 0) return buffer;
}

bool overlap_live_buffers(fb::PlanT& plan, Random& random) {
  fb::BufferT &a = any_transient_buffer(plan, random), &b = any_transient_buffer(plan, random);
  if (&a == &b || a.program != b.program || a.first > b.last || b.first > a.last) return false;
  a.offset = b.offset;
  plan.arenas[static_cast<size_t>(fb::ArenaKind::Activations)]->size += a.size;
  return true;
}

bool move_state(fb::PlanT& plan, Random&) {
  plan.tensors[plan.io->metrics]->buffer = plan.tensors[plan.io->train_state]->buffer;
  plan.tensors[plan.io->metrics]->shape = {1};
  return true;
}

bool misfit_interface(fb::PlanT& plan, Random& random) {
  int* const shared[] = {&plan.io->train_state, &plan.io->metrics, &plan.io->logits};
  int& id = *shared[random() % 3];
  fb::TensorT& tensor = *plan.tensors[static_cast<size_t>(id)];
  switch (random() % 3) {
    case 0:
      tensor.dtype = fb::DType::U8;
      return id != plan.io->train_state;
    case 1:
      tensor.shape[0] /= 2;
      return id != plan.io->logits;
    default: {
      const int before = std::exchange(id, static_cast<int>(random() % plan.tensors.size()));
      const fb::TensorT& other = *plan.tensors[static_cast<size_t>(id)];
      return other.buffer != plan.tensors[static_cast<size_t>(before)]->buffer && &id != &plan.io->logits;
    }
  }
}

bool move_parameter(fb::PlanT& plan, Random& random) {
  const fb::ParameterT &a = any(plan.parameters, random), &b = any(plan.parameters, random);
  fb::TensorT &moved = *plan.tensors[a.grad], &other = *plan.tensors[b.grad];
  if (&a == &b || moved.offset > other.offset) return false;
  moved.offset = other.offset;
  return true;
}

bool swap_producer_and_consumer(fb::PlanT& plan, Random& random) {
  auto& instructions = plan.programs[kAccumulate]->instructions;
  auto& consumer = instructions[random() % instructions.size()];
  const int id = consumer->inputs[random() % consumer->inputs.size()];
  if (!transient(plan, id)) return false;
  for (auto& producer : instructions)
    if (std::ranges::count(producer->outputs, id)) std::swap(producer, consumer);
  return true;
}

bool leave_bounds(fb::PlanT& plan, Random& random) {
  switch (random() % 3) {
    case 0:
      any_transient_buffer(plan, random).offset += uint64_t{1} << (30 + random() % 34);
      return true;
    case 1:
      any(plan.tensors, random).offset += uint64_t{1} << (20 + random() % 44);
      return true;
    default:
      any(plan.arenas, random).size -= 256;  // no less than what alignment may have added
      return true;
  }
}

bool dangle(fb::PlanT& plan, Random& random) {
  const int tensors = static_cast<int>(plan.tensors.size());
  const int bad =
      random() % 2 ? tensors + static_cast<int>(random() % 1000) : -2 - static_cast<int>(random() % 1000);
  fb::InstructionT& instruction = any_instruction(plan, random);
  switch (random() % 7) {
    case 0:
      instruction.inputs[random() % instruction.inputs.size()] = bad;
      return true;
    case 1:
      instruction.outputs[random() % instruction.outputs.size()] = bad;
      return true;
    case 2:
      instruction.workspace = bad;
      return true;
    case 3:
      any(plan.tensors, random).buffer = static_cast<uint32_t>(plan.buffers.size() + random() % 9);
      return true;
    case 4:
      any(plan.parameters, random).moment1 = bad;
      return true;
    case 5:
      plan.io->logits = bad;
      return true;
    default: {
      fb::BufferT& buffer = any_transient_buffer(plan, random);
      buffer.program = random() % 2 ? -1 : buffer.program + 1;
      return true;
    }
  }
}

bool change_version(fb::PlanT& plan, Random& random) {
  const fb::InstructionT& instruction = any_reader(plan, random);
  const std::vector<int>& ids = random() % 2 ? instruction.inputs : instruction.outputs;
  const int id = ids[random() % ids.size()];
  if (id == -1 || transient(plan, id)) return false;
  uint32_t& version = plan.tensors[id]->version;
  const uint32_t before = std::exchange(version, static_cast<uint32_t>(random() % 3));
  return version != before;
}

/// Reads the state before or after the one meant.
bool read_another_version(fb::PlanT& plan, Random& random) {
  fb::InstructionT& instruction = any_reader(plan, random);
  int& id = instruction.inputs[random() % instruction.inputs.size()];
  if (id == -1 || transient(plan, id)) return false;
  const fb::TensorT& read = *plan.tensors[id];
  for (size_t t = 0; t < plan.tensors.size(); ++t) {
    const fb::TensorT& other = *plan.tensors[t];
    if (other.buffer != read.buffer || other.offset != read.offset || other.shape != read.shape ||
        other.version <= read.version)
      continue;
    id = static_cast<int>(t);
    return true;
  }
  return false;
}

bool lie_about_lifetime(fb::PlanT& plan, Random& random) {
  fb::BufferT& buffer = any_transient_buffer(plan, random);
  uint32_t& end = random() % 2 ? buffer.first : buffer.last;
  end += random() % 2 ? 1u : ~0u;
  return true;
}

bool lie_about_size(fb::PlanT& plan, Random& random) {
  fb::TensorT& tensor = any(plan.tensors, random);
  fb::BufferT& buffer = *plan.buffers[tensor.buffer];
  switch (random() % 5) {
    case 0:
      buffer.size = tensor.offset + bytes_of(tensor) - 1;
      return true;
    case 1:
      buffer.size += uint64_t{1} << (40 + random() % 24);
      return true;
    case 2:
      if (tensor.shape.empty() || tensor.shape[0] == 0) return false;
      return !__builtin_mul_overflow(tensor.shape[0], uint64_t{1} << (20 + random() % 40), &tensor.shape[0]);
    case 3:
      plan.activations_lower_bound += random() % 2 ? 256 : ~uint64_t{255};
      return true;
    default:
      any(plan.parameters, random).param = plan.parameters[0]->param == 0 ? -1 : 0;
      return true;
  }
}

bool name_unknown_kernel(fb::PlanT& plan, Random& random) {
  fb::InstructionT& instruction = any_instruction(plan, random);
  if (random() % 2)
    instruction.kernel += static_cast<char>('a' + random() % 26);
  else
    instruction.kernel.pop_back();
  return !find_kernel(instruction.kernel);
}

bool drop_operand(fb::PlanT& plan, Random& random) {
  fb::InstructionT& instruction = any_instruction(plan, random);
  const KernelInfo& info = *find_kernel(instruction.kernel);
  const bool inputs = random() % 2;
  std::vector<int>& ids = inputs ? instruction.inputs : instruction.outputs;
  const size_t i = random() % ids.size();
  switch (random() % 3) {
    case 0:
      ids.pop_back();
      return true;
    case 1:
      ids.push_back(ids[i]);
      return true;
    default:
      if ((inputs ? info.inputs : info.outputs)[i].optional) return false;
      ids[i] = -1;
      return true;
  }
}

bool overwrite_input(fb::PlanT& plan, Random& random) {
  const fb::InstructionT& instruction = any_instruction(plan, random);
  const KernelInfo& info = *find_kernel(instruction.kernel);
  const int o = static_cast<int>(random() % instruction.outputs.size());
  const int i = static_cast<int>(random() % instruction.inputs.size());
  const int output = instruction.outputs[o], input = instruction.inputs[i];
  if (!transient(plan, output) || !transient(plan, input)) return false;
  // A kernel may take one tensor twice; it must not allow the overwriting of either place.
  for (const InPlace& pair : info.in_place)
    if (pair.output == o && instruction.inputs[pair.input] == input) return false;
  plan.tensors[output]->buffer = plan.tensors[input]->buffer;
  return true;
}

bool move_required_output(fb::PlanT& plan, Random& random) {
  const fb::InstructionT& instruction = any(any(plan.programs, random).instructions, random);
  for (const InPlace& pair : find_kernel(instruction.kernel)->in_place) {
    if (!pair.required || instruction.inputs[pair.input] == -1) continue;
    fb::TensorT& output = *plan.tensors[instruction.outputs[pair.output]];
    if (output.shape.empty() || output.shape[0] < 2) continue;
    output.shape[0] -= 1;
    output.offset += bytes_of(output) / output.shape[0] * (random() % 2);
    return true;
  }
  return false;
}

bool shrink_workspace(fb::PlanT& plan, Random& random) {
  fb::InstructionT& instruction = any_instruction(plan, random);
  if (instruction.workspace == -1) return false;
  if (random() % 2)
    instruction.workspace = -1;
  else
    plan.tensors[instruction.workspace]->shape[0] -= 1 + random() % 16;
  return true;
}

/// Another type of the same size, so that nothing else is wrong. That of a tensor all of whose readers and
/// writers would take the other as well may be sound.
bool change_type(fb::PlanT& plan, Random& random) {
  using enum fb::DType;
  const fb::InstructionT& instruction = any_instruction(plan, random);
  const std::vector<int>& ids = random() % 2 ? instruction.inputs : instruction.outputs;
  const int id = ids[random() % ids.size()];
  if (id == -1) return false;
  fb::DType& dtype = plan.tensors[static_cast<size_t>(id)]->dtype;
  if (dtype != F32) return false;
  dtype = I32;
  return true;
}

/// The tensors of an operand list of one instruction, absent ones aside.
fb::TensorT* any_operand(fb::PlanT& plan, const std::vector<int>& ids, Random& random) {
  const int id = ids[random() % ids.size()];
  return id == -1 ? nullptr : plan.tensors[static_cast<size_t>(id)].get();
}

/// The index of the kernel's weight among its inputs, -1 where it has no matrix of that name that is not
/// square.
int oblong_weight(const fb::PlanT& plan, const fb::InstructionT& instruction) {
  const int weight = find_kernel(instruction.kernel)->input_index("weight");
  if (weight < 0) return -1;
  const auto id = static_cast<size_t>(instruction.inputs[static_cast<size_t>(weight)]);
  const std::vector<uint64_t>& shape = plan.tensors[id]->shape;
  return shape.size() >= 2 && shape.back() != shape[shape.size() - 2] ? weight : -1;
}

bool change_shape(fb::PlanT& plan, Random& random) {
  fb::InstructionT& instruction = any_instruction(plan, random);
  const int weight = oblong_weight(plan, instruction);
  switch (random() % 3) {
    case 0: {  // smaller, so that nothing leaves its buffer
      fb::TensorT* tensor =
          any_operand(plan, random() % 2 ? instruction.inputs : instruction.outputs, random);
      if (tensor == nullptr || tensor->shape.empty()) return false;
      if (plan.io->window >= 0 && tensor == plan.tensors[static_cast<size_t>(plan.io->window)].get())
        return false;
      uint64_t& dim = tensor->shape[random() % tensor->shape.size()];
      --dim;
      return true;
    }
    case 1: {  // transposed
      if (weight < 0) return false;
      const auto id = static_cast<size_t>(instruction.inputs[static_cast<size_t>(weight)]);
      std::vector<uint64_t>& shape = plan.tensors[id]->shape;
      std::swap(shape.back(), shape[shape.size() - 2]);
      return true;
    }
    default: {  // another parameter, which may be read everywhere
      if (weight < 0) return false;
      int& id = instruction.inputs[static_cast<size_t>(weight)];
      const int before = std::exchange(id, any(plan.parameters, random).param);
      return plan.tensors[static_cast<size_t>(id)]->shape != plan.tensors[static_cast<size_t>(before)]->shape;
    }
  }
}

/// What grad_norm sums: less, something twice, or another tensor.
bool change_norm(fb::PlanT& plan, Random& random) {
  constexpr size_t kGrads = 2;
  std::vector<fb::InstructionT*> norms;
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions)
      if (instruction->kernel == "grad_norm") norms.push_back(instruction.get());
  std::vector<int>& inputs = any(norms, random).inputs;
  const size_t at = kGrads + random() % (inputs.size() - kGrads);
  const fb::ParameterT& parameter = any(plan.parameters, random);
  switch (random() % 4) {
    case 0:
      inputs.erase(inputs.begin() + static_cast<std::ptrdiff_t>(at));
      return true;
    case 1:
      inputs[at] = parameter.grad;
      return true;
    case 2:
      inputs[at] = parameter.moment1;
      return true;
    default: {
      if (inputs.size() < kGrads + 2) return false;
      const int before =
          std::exchange(inputs[at], inputs[kGrads + (at - kGrads + 1) % (inputs.size() - kGrads)]);
      return inputs[at] != before;
    }
  }
}

bool write_twice(fb::PlanT& plan, Random& random) {
  fb::InstructionT &a = any_instruction(plan, random), &b = any_instruction(plan, random);
  if (&a == &b) return false;
  a.outputs[0] = b.outputs[0];
  return true;
}

bool break_enum(fb::PlanT& plan, Random& random) {
  const int bad = 200 + static_cast<int>(random() % 50);
  switch (random() % 6) {
    case 0:
      any(plan.tensors, random).dtype = static_cast<fb::DType>(bad);
      return true;
    case 1:
      any(plan.buffers, random).arena = static_cast<fb::ArenaKind>(bad);
      return true;
    case 2:
      any(plan.buffers, random).kind = static_cast<fb::BufferKind>(bad);
      return true;
    case 3:
      any(plan.arenas, random).kind = static_cast<fb::ArenaKind>(bad);
      return true;
    case 4:
      any(plan.programs, random).kind = static_cast<fb::ProgramKind>(bad);
      return true;
    default:
      any(plan.programs, random).kind = fb::ProgramKind::Decode;
      break;
  }
  plan.programs[0]->kind = fb::ProgramKind::Decode;
  return plan.programs[1]->kind == plan.programs[0]->kind || plan.programs[2]->kind == plan.programs[0]->kind;
}

bool misname_parameter(fb::PlanT& plan, Random& random) {
  constexpr const char* kBroken[] = {"\xff", "\xe2\x82", "\xed\xa0\x80", "\xc0\xaf"};
  any(plan.parameters, random).name += kBroken[random() % std::size(kBroken)];
  return true;
}

constexpr Mutation kMutations[] = {
    {"overlapping live buffers", overlap_live_buffers},
    {"overlapping parameters", move_parameter},
    {"overlapping state", move_state},
    {"misfit of the interface", misfit_interface},
    {"consumer before producer", swap_producer_and_consumer},
    {"out of bounds", leave_bounds},
    {"dangling id", dangle},
    {"wrong version", change_version},
    {"read of another version", read_another_version},
    {"false lifetime", lie_about_lifetime},
    {"false size", lie_about_size},
    {"unknown kernel", name_unknown_kernel},
    {"missing operand", drop_operand},
    {"illegal in-place", overwrite_input},
    {"output not in place", move_required_output},
    {"undersized workspace", shrink_workspace},
    {"wrong type", change_type},
    {"wrong shape", change_shape},
    {"another gradient norm", change_norm},
    {"second write", write_twice},
    {"name that is not UTF-8", misname_parameter},
    {"invalid enum", break_enum},
};

}  // namespace

std::span<const Mutation> mutations() { return kMutations; }

}  // namespace moec::planner
