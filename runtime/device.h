// Where a plan runs. A device holds one plan's arenas and executes its programs; it knows nothing about
// training.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernel.h"
#include "runtime/plan.h"
#include "runtime/status.h"

namespace moec::runtime {

struct MemoryOptions {
  /// Fill the activation arena with NaN (every byte 0xFF), so that a kernel that reads what nobody wrote
  /// shows.
  bool poison_activations = false;
  /// Leave the activation arena as it was allocated, for memory checkers that look for reads of it.
  bool leave_activations_unset = false;
};

/// One executed instruction of a traced run.
struct TraceEvent {
  size_t index = 0;  // in its program
  const fb::InstructionT* instruction = nullptr;
  double seconds = 0;
};

/// Called after each instruction, when its outputs are in device memory; an error ends the run.
using Tracer = std::function<Status(const TraceEvent&)>;

/// A plan is loaded once; its programs are then run any number of times. Runs and copies happen in the order
/// they are asked for. A run may return before it is done, and its fault show in a later call; reading and
/// wait() wait. Not thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  virtual std::string_view name() const = 0;
  virtual bool has_kernel(std::string_view key) const = 0;

  /// Resolves every kernel (all that are missing are named at once), allocates the arenas (zero-filled,
  /// activations optionally poisoned) and gives every instruction its addresses.
  Status load(std::shared_ptr<const LoadedPlan> plan, MemoryOptions options = {});

  /// The loaded plan.
  const LoadedPlan& plan() const { return *plan_; }

  /// Copies between host memory and a range of a tensor, `offset` in bytes from its start; the range must lie
  /// inside.
  Status write(int tensor, uint64_t offset, std::span<const std::byte> bytes);
  Status read(int tensor, uint64_t offset, std::span<std::byte> bytes);

  /// Runs the program once. With a tracer, instruction by instruction.
  Status run(fb::ProgramKind kind, const Tracer& tracer = nullptr);

  /// Runs the programs one after the other; a device may submit a sequence that it has seen before as one.
  Status run(std::span<const fb::ProgramKind> sequence);

  /// Runs one instruction of a program and waits for it; returns the seconds it took.
  Result<double> run_instruction(fb::ProgramKind kind, size_t instruction);

  /// Waits until all that was asked for is done.
  virtual Status wait() = 0;

 protected:
  struct Program {
    const fb::ProgramT* plan = nullptr;
    std::vector<KernelCall> calls;  // one per instruction, addresses filled in
  };

  Device() = default;
  const std::vector<Program>& programs() const { return programs_; }
  /// "Accumulate instruction 12 'block.0.attention.qkv' (linear)".
  std::string describe(size_t program, size_t instruction) const;

  /// `size` bytes of device memory, aligned to at least 256; zeroed where asked.
  virtual Result<void*> allocate(uint64_t size, bool zero) = 0;
  virtual Status fill(void* data, uint8_t value, uint64_t size) = 0;
  virtual Status copy_in(void* to, std::span<const std::byte> from) = 0;
  virtual Status copy_out(std::span<std::byte> to, const void* from) = 0;
  /// Called once all programs are ready.
  virtual Status prepare() = 0;
  /// Runs an instruction, waits for it, returns its seconds; both numbers are places in the plan.
  virtual Result<double> execute_one(size_t program, size_t instruction) = 0;
  /// Runs programs, given by their places in the plan, one after the other.
  virtual Status execute(std::span<const size_t> programs);

 private:
  static constexpr size_t kArenas = static_cast<size_t>(fb::ArenaKind::MAX) + 1;

  Result<size_t> find_program(fb::ProgramKind kind) const;
  Status check_kernels(const LoadedPlan& plan) const;
  Status allocate_arenas(const LoadedPlan& plan, MemoryOptions options);
  TensorView view(const LoadedPlan& plan, int tensor) const;
  Program link(const LoadedPlan& plan, const fb::ProgramT& program) const;
  /// Address of a byte range of a tensor.
  Result<std::byte*> locate(int tensor, uint64_t offset, size_t bytes) const;

  std::shared_ptr<const LoadedPlan> plan_;
  std::array<std::byte*, kArenas> arenas_{};
  std::vector<Program> programs_;
};

/// The CPU device: runs instructions in order on all threads.
std::unique_ptr<Device> make_cpu_device();

}  // namespace moec::runtime
