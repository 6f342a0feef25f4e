#include "runtime/device.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "runtime/guard.h"

namespace moec::runtime {
namespace {

/// A read that was done when it was asked for.
class DoneRead final : public LateRead {
 public:
  DoneRead(std::vector<std::byte> bytes, double seconds) : bytes_(std::move(bytes)), seconds_(seconds) {}

  Result<bool> ready() override { return true; }
  std::span<const std::byte> bytes() const override { return bytes_; }
  Result<double> seconds() override { return seconds_; }

 private:
  std::vector<std::byte> bytes_;
  double seconds_;
};

/// "the plan needs 96 bytes: Params 64, State 32".
std::string memory_needed(const fb::PlanT& plan) {
  uint64_t total = 0;
  std::vector<std::string> parts;
  for (const auto& arena : plan.arenas) {
    total += arena->size;
    parts.push_back(fmt::format("{} {}", fb::EnumNameArenaKind(arena->kind), arena->size));
  }
  return fmt::format("the plan needs {} bytes: {}", total, fmt::join(parts, ", "));
}

}  // namespace

Status Device::load(std::shared_ptr<const LoadedPlan> plan, MemoryOptions options) {
  return guarded("loading " + plan->source, [&]() -> Status {
    if (plan_ != nullptr) return failure(fmt::format("{}: the device already holds a plan", plan->source));
    MOEC_RETURN_IF_ERROR(check_kernels(*plan));
    MOEC_RETURN_IF_ERROR(allocate_arenas(*plan, options));
    for (const auto& program : plan->plan.programs) programs_.push_back(link(*plan, *program));
    MOEC_RETURN_IF_ERROR(prepare());
    plan_ = std::move(plan);
    return {};
  });
}

std::string_view Device::demanded_variant(const fb::PlanT& plan, const fb::InstructionT& instruction) const {
  return plan.tuned_for == model() ? variant_of(plan, instruction) : std::string_view();
}

Status Device::check_kernels(const LoadedPlan& plan) const {
  std::set<std::string> missing;
  for (const auto& program : plan.plan.programs)
    for (const auto& instruction : program->instructions) {
      const std::string_view variant = demanded_variant(plan.plan, *instruction);
      if (!has_kernel(instruction->kernel))
        missing.insert(instruction->kernel);
      else if (!variant.empty() && !has_variant(instruction->kernel, variant))
        missing.insert(fmt::format("{} ({})", instruction->kernel, variant));
    }
  if (missing.empty()) return {};
  return input_error(
      fmt::format("{}: device '{}' has no kernel for: {}", plan.source, name(), fmt::join(missing, ", ")));
}

Status Device::allocate_arenas(const LoadedPlan& plan, MemoryOptions options) {
  for (const auto& arena : plan.plan.arenas) {
    if (arena->size == 0) continue;
    const bool activations = arena->kind == fb::ArenaKind::Activations;
    const auto memory = allocate(arena->size, !(activations && options.leave_activations_unset));
    if (!memory.ok())
      return failure(fmt::format("{}: no {} memory for the {} arena of {} bytes; {}: {}", plan.source, name(),
                                 fb::EnumNameArenaKind(arena->kind), arena->size, memory_needed(plan.plan),
                                 memory.error().message));
    arenas_[static_cast<size_t>(arena->kind)] = static_cast<std::byte*>(*memory);
    if (options.poison_activations && activations) MOEC_RETURN_IF_ERROR(fill(*memory, 0xFF, arena->size));
  }
  return {};
}

TensorView Device::view(const LoadedPlan& plan, int tensor) const {
  TensorView result;
  if (tensor < 0) return result;
  const fb::TensorT& t = *plan.tensor(tensor);
  const fb::BufferT& buffer = *plan.plan.buffers[t.buffer];
  result.data = arenas_[static_cast<size_t>(buffer.arena)] + buffer.offset + t.offset;
  result.dtype = t.dtype;
  result.rank = static_cast<int>(t.shape.size());
  std::copy(t.shape.begin(), t.shape.end(), result.shape.begin());
  return result;
}

Device::Program Device::link(const LoadedPlan& plan, const fb::ProgramT& program) const {
  Program linked{.plan = &program, .calls = {}, .variants = {}};
  for (const auto& instruction : program.instructions) {
    KernelCall call;
    for (const int id : instruction->inputs) call.inputs.push_back(view(plan, id));
    for (const int id : instruction->outputs) call.outputs.push_back(view(plan, id));
    call.workspace = view(plan, instruction->workspace);
    call.op = &instruction->op;
    linked.calls.push_back(std::move(call));
    linked.variants.push_back(demanded_variant(plan.plan, *instruction));
  }
  return linked;
}

Result<std::byte*> Device::locate(int tensor, uint64_t offset, size_t bytes) const {
  if (plan_ == nullptr) return failure("no plan is loaded on the device");
  if (tensor < 0 || static_cast<size_t>(tensor) >= plan_->plan.tensors.size())
    return failure(fmt::format("{}: no tensor with id {}", plan_->source, tensor));
  const TensorView whole = view(*plan_, tensor);
  const auto size = static_cast<uint64_t>(whole.bytes());
  if (offset > size || bytes > size - offset)
    return failure(fmt::format("{}: bytes {}+{} are outside tensor '{}' of {} bytes", plan_->source, offset,
                               bytes, plan_->tensor(tensor)->name, size));
  return whole.as<std::byte>() + offset;
}

Status Device::write(int tensor, uint64_t offset, std::span<const std::byte> bytes) {
  MOEC_ASSIGN_OR_RETURN(std::byte* const to, locate(tensor, offset, bytes.size()));
  return copy_in(to, bytes);
}

Status Device::read(int tensor, uint64_t offset, std::span<std::byte> bytes) {
  MOEC_ASSIGN_OR_RETURN(const std::byte* const from, locate(tensor, offset, bytes.size()));
  return copy_out(bytes, from);
}

Status Device::stage(std::span<const std::byte> bytes) {
  staged_ = bytes;
  return copy_to_stage(bytes);
}

Status Device::write_staged(int tensor) {
  MOEC_ASSIGN_OR_RETURN(std::byte* const to, locate(tensor, 0, staged_.size()));
  return copy_from_stage(to);
}

Result<std::unique_ptr<LateRead>> Device::read_later(int tensor, uint64_t offset, size_t bytes) {
  if (bytes > kMostLateBytes) return failure(fmt::format("{} bytes are too many to be read later", bytes));
  MOEC_ASSIGN_OR_RETURN(const std::byte* const from, locate(tensor, offset, bytes));
  return copy_out_later(from, bytes);
}

Result<std::unique_ptr<LateRead>> Device::copy_out_later(const void* from, size_t bytes) {
  std::vector<std::byte> copy(bytes);
  MOEC_RETURN_IF_ERROR(copy_out(copy, from));
  const auto now = Clock::now();
  const bool first = last_late_read_ == Clock::time_point();
  const std::chrono::duration<double> elapsed = now - (first ? now : last_late_read_);
  last_late_read_ = now;
  return std::unique_ptr<LateRead>(std::make_unique<DoneRead>(std::move(copy), elapsed.count()));
}

Result<size_t> Device::find_program(fb::ProgramKind kind) const {
  if (plan_ == nullptr) return failure("no plan is loaded on the device");
  for (size_t i = 0; i < programs_.size(); ++i)
    if (programs_[i].plan->kind == kind) return i;
  return input_error(
      fmt::format("{}: the plan has no {} program", plan_->source, fb::EnumNameProgramKind(kind)));
}

std::string Device::describe(size_t program, size_t instruction) const {
  const fb::ProgramT& plan = *programs_[program].plan;
  const fb::InstructionT& it = *plan.instructions[instruction];
  return fmt::format("{} instruction {} '{}' ({})", fb::EnumNameProgramKind(plan.kind), instruction, it.label,
                     it.kernel);
}

Result<std::vector<std::string_view>> Device::variants(fb::ProgramKind kind, size_t instruction) const {
  MOEC_ASSIGN_OR_RETURN(const size_t program, find_program(kind));
  return variants_for(programs_[program].plan->instructions[instruction]->kernel,
                      programs_[program].calls[instruction]);
}

Status Device::run(fb::ProgramKind kind, const Tracer& tracer) {
  if (!tracer) return run({&kind, 1});
  MOEC_ASSIGN_OR_RETURN(const size_t program, find_program(kind));
  for (size_t i = 0; i < programs_[program].calls.size(); ++i) {
    MOEC_ASSIGN_OR_RETURN(const double seconds, execute_one(program, i));
    MOEC_RETURN_IF_ERROR(tracer({i, programs_[program].plan->instructions[i].get(), seconds}));
  }
  return {};
}

Status Device::run(std::span<const fb::ProgramKind> sequence) {
  return guarded("running a plan", [&]() -> Status {
    std::vector<size_t> programs;
    for (const fb::ProgramKind kind : sequence) {
      MOEC_ASSIGN_OR_RETURN(const size_t program, find_program(kind));
      programs.push_back(program);
    }
    return timeline_ ? execute_timed(programs) : execute(programs);
  });
}

Status Device::start_timeline(TimelineDetail detail) {
  if (detail == TimelineDetail::kReplays) return failure(fmt::format("{}: records no replays", name()));
  timeline_ = {.method = "instructions timed one by one"};
  timeline_start_ = Clock::now();
  return {};
}

Result<Timeline> Device::stop_timeline() {
  MOEC_RETURN_IF_ERROR(wait());
  return *std::exchange(timeline_, std::nullopt);
}

Status Device::execute_timed(std::span<const size_t> programs) {
  for (const size_t program : programs)
    for (size_t i = 0; i < programs_[program].calls.size(); ++i) {
      const std::chrono::duration<double> begin = Clock::now() - timeline_start_;
      MOEC_ASSIGN_OR_RETURN(const double seconds, execute_one(program, i));
      timeline_->instructions.push_back({{begin.count(), begin.count() + seconds}, program, i});
    }
  return {};
}

Result<std::vector<MemoryUse>> Device::memory_use() {
  MemoryUse arenas{.what = "arenas"};
  for (const auto& arena : plan().plan.arenas) arenas.bytes += arena->size;
  return std::vector<MemoryUse>{arenas};
}

Result<double> Device::run_instruction(fb::ProgramKind kind, size_t instruction) {
  MOEC_ASSIGN_OR_RETURN(const size_t program, find_program(kind));
  if (instruction >= programs_[program].calls.size())
    return failure(fmt::format("{}: the {} program has no instruction {}", plan_->source,
                               fb::EnumNameProgramKind(kind), instruction));
  return execute_one(program, instruction);
}

Status Device::execute(std::span<const size_t> programs) {
  for (const size_t program : programs)
    for (size_t i = 0; i < programs_[program].calls.size(); ++i)
      MOEC_RETURN_IF_ERROR(execute_one(program, i).status());
  return {};
}

}  // namespace moec::runtime
