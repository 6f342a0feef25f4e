#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "kernels/cpu/cpu_kernels.h"
#include "runtime/device.h"

namespace moec::runtime {
namespace {

/// Anonymous pages: zeroed, page-aligned, and touched only when a kernel first uses them.
class Pages {
 public:
  Pages(void* data, size_t size) : data_(data), size_(size) {}
  Pages(Pages&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  Pages& operator=(Pages&&) = delete;
  ~Pages() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

 private:
  void* data_;
  size_t size_;
};

class CpuDevice final : public Device {
 public:
  std::string_view name() const override { return "cpu"; }
  Status wait() override { return {}; }
  bool has_kernel(std::string_view key) const override { return cpu::find_kernel(key) != nullptr; }

 private:
  Result<void*> allocate(uint64_t size, bool) override {  // the pages of the system are always zeroed
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return failure(std::strerror(errno));
    arenas_.emplace_back(data, size);
    ::madvise(data, size, MADV_HUGEPAGE);  // advice only: fewer page faults and TLB misses where it is taken
    return data;
  }

  Status fill(void* data, uint8_t value, uint64_t size) override {
    std::memset(data, value, size);
    return {};
  }

  Status copy_in(void* to, std::span<const std::byte> from) override {
    if (!from.empty()) std::memcpy(to, from.data(), from.size());
    return {};
  }

  Status copy_out(std::span<std::byte> to, const void* from) override {
    if (!to.empty()) std::memcpy(to.data(), from, to.size());
    return {};
  }

  Status prepare() override {
    for (const Program& program : programs()) {
      std::vector<cpu::CpuKernel>& kernels = kernels_.emplace_back();
      for (const auto& instruction : program.plan->instructions)
        kernels.push_back(cpu::find_kernel(instruction->kernel));
    }
    return {};
  }

  Result<double> execute_one(size_t program, size_t instruction) override {
    const auto start = Clock::now();
    try {
      kernels_[program][instruction](programs()[program].calls[instruction]);
    } catch (const std::exception& e) {
      return failure(fmt::format("{}: {}", describe(program, instruction), e.what()));
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  std::vector<Pages> arenas_;
  std::vector<std::vector<cpu::CpuKernel>> kernels_;  // per program and instruction
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }

}  // namespace moec::runtime
