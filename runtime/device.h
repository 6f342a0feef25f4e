// Where a plan runs. A device holds one plan's arenas and executes its programs; it knows nothing about
// training.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernel.h"
#include "runtime/plan.h"
#include "runtime/status.h"
#include "runtime/timeline.h"

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

/// A range of a tensor on its way to the host. Must not outlive its device.
class LateRead {
 public:
  virtual ~LateRead() = default;

  /// Whether the bytes are there; does not wait.
  virtual Result<bool> ready() = 0;
  /// The bytes, once ready() has said that they are there.
  virtual std::span<const std::byte> bytes() const = 0;
  /// Seconds on the device's clock between the places in the order of runs at which this read and the one
  /// before it were asked for (0 for the first), once ready() has said that the bytes are there.
  virtual Result<double> seconds() = 0;
};

/// Device memory that something takes, as the device counts it.
struct MemoryUse {
  std::string what;
  uint64_t bytes = 0;
};

/// A plan is loaded once; its programs are then run any number of times. Runs and copies happen in the order
/// they are asked for. A run may return before it is done, and its fault show in a later call; reading and
/// wait() wait. Not thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  virtual std::string_view name() const = 0;
  /// What it is, as tuned plans name it: "NVIDIA H200".
  virtual std::string_view model() const { return name(); }
  virtual bool has_kernel(std::string_view key) const = 0;
  /// Whether it can be told to compute the kernel in this way (kernels/variants.def).
  virtual bool has_variant(std::string_view, std::string_view) const { return false; }

  /// Resolves every kernel (all that are missing are named at once), allocates the arenas (zero-filled,
  /// activations optionally poisoned) and gives every instruction its addresses. Variants that the plan
  /// chooses count where it was tuned for a device of this model.
  Status load(std::shared_ptr<const LoadedPlan> plan, MemoryOptions options = {});

  /// The loaded plan.
  const LoadedPlan& plan() const { return *plan_; }

  /// Copies between host memory and a range of a tensor, `offset` in bytes from its start; the range must lie
  /// inside.
  Status write(int tensor, uint64_t offset, std::span<const std::byte> bytes);
  Status read(int tensor, uint64_t offset, std::span<std::byte> bytes);

  /// Copies the bytes to the device beside the runs under way, for the write_staged that must follow. They
  /// must stay as they are until wait() has returned.
  Status stage(std::span<const std::byte> bytes);
  /// Writes what was staged last to the start of a tensor, in the order of runs, without waiting for them.
  Status write_staged(int tensor);

  /// Reads a range of a tensor as soon as what was asked for so far is done; waits for nothing. Runs that are
  /// asked for later may be under way by then: they must not write the range. At most kMostLateBytes, and
  /// kMostLateReads may be held at a time.
  Result<std::unique_ptr<LateRead>> read_later(int tensor, uint64_t offset, size_t bytes);
  static constexpr size_t kMostLateBytes = 1024;
  static constexpr size_t kMostLateReads = 256;

  /// Runs the program once. With a tracer, instruction by instruction.
  Status run(fb::ProgramKind kind, const Tracer& tracer = nullptr);

  /// Runs the programs one after the other; a device may submit a sequence that it has seen before as one.
  Status run(std::span<const fb::ProgramKind> sequence);

  /// Runs one instruction of a program and waits for it; returns the seconds it took.
  Result<double> run_instruction(fb::ProgramKind kind, size_t instruction);

  /// The variants of its kernel that compute an instruction of the loaded plan; none where there is but one
  /// way.
  Result<std::vector<std::string_view>> variants(fb::ProgramKind kind, size_t instruction) const;

  /// Waits until all that was asked for is done.
  virtual Status wait() = 0;

  /// Whether the device submits runs as a whole and can say when these began and ended.
  virtual bool records_replays() const { return false; }
  /// Records what is run until stop_timeline(), which waits for it. Where the device cannot look into its
  /// runs, instructions are run and timed one by one. `detail` kReplays needs records_replays().
  virtual Status start_timeline(TimelineDetail detail);
  virtual Result<Timeline> stop_timeline();

  /// What takes the device's memory now; the first are the arenas.
  virtual Result<std::vector<MemoryUse>> memory_use();

 protected:
  using Clock = std::chrono::steady_clock;

  struct Program {
    const fb::ProgramT* plan = nullptr;
    std::vector<KernelCall> calls;           // one per instruction, addresses filled in
    std::vector<std::string_view> variants;  // one per instruction, empty where the device chooses
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
  /// The halves of stage() and write_staged(); where nothing runs beside the host, the first has nothing to
  /// do.
  virtual Status copy_to_stage(std::span<const std::byte>) { return {}; }
  virtual Status copy_from_stage(void* to) { return copy_in(to, staged_); }
  virtual Result<std::unique_ptr<LateRead>> copy_out_later(const void* from, size_t bytes);
  virtual std::vector<std::string_view> variants_for(std::string_view, const KernelCall&) const { return {}; }
  /// Called once all programs are ready.
  virtual Status prepare() = 0;
  /// Runs an instruction, waits for it, returns its seconds; both numbers are places in the plan.
  virtual Result<double> execute_one(size_t program, size_t instruction) = 0;
  /// Runs programs, given by their places in the plan, one after the other.
  virtual Status execute(std::span<const size_t> programs);

 private:
  static constexpr size_t kArenas = static_cast<size_t>(fb::ArenaKind::MAX) + 1;

  Result<size_t> find_program(fb::ProgramKind kind) const;
  Status execute_timed(std::span<const size_t> programs);
  /// The variant that the instruction demands of this device; empty for none.
  std::string_view demanded_variant(const fb::PlanT& plan, const fb::InstructionT& instruction) const;
  Status check_kernels(const LoadedPlan& plan) const;
  Status allocate_arenas(const LoadedPlan& plan, MemoryOptions options);
  TensorView view(const LoadedPlan& plan, int tensor) const;
  Program link(const LoadedPlan& plan, const fb::ProgramT& program) const;
  /// Address of a byte range of a tensor.
  Result<std::byte*> locate(int tensor, uint64_t offset, size_t bytes) const;

  std::shared_ptr<const LoadedPlan> plan_;
  std::array<std::byte*, kArenas> arenas_{};
  std::vector<Program> programs_;
  std::optional<Timeline> timeline_;  // of instructions that are timed one by one
  Clock::time_point timeline_start_;
  std::span<const std::byte> staged_;
  Clock::time_point last_late_read_;
};

/// The CPU device: runs instructions in order on all threads.
std::unique_ptr<Device> make_cpu_device();

}  // namespace moec::runtime
