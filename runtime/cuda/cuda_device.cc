#include "runtime/cuda/cuda_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "runtime/cuda/cuda_check.h"
#include "runtime/cuda/cuda_handles.h"

namespace moec::runtime {
namespace {

/// What cuBLAS recommends for Hopper; a fixed size, because its choice of algorithm depends on it.
constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;

/// The number of the last instruction that the device has completed in eager execution. Numbers run through
/// all programs and start at 1; 0 is none. After a fault the host can still read it.
class Progress {
 public:
  Status create(uint32_t instructions) {
    std::vector<uint32_t> numbers(instructions + size_t{1});
    std::iota(numbers.begin(), numbers.end(), 0);
    const size_t bytes = numbers.size() * sizeof(uint32_t);
    uint32_t *device = nullptr, *host = nullptr;
    MOEC_RETURN_IF_CUDA_ERROR(cudaMalloc(&device, bytes));
    numbers_.reset(device);
    MOEC_RETURN_IF_CUDA_ERROR(cudaMallocHost(&host, sizeof(uint32_t)));
    last_.reset(host);
    *host = 0;
    MOEC_RETURN_IF_CUDA_ERROR(cudaMemcpy(device, numbers.data(), bytes, cudaMemcpyHostToDevice));
    return {};
  }

  /// Enqueues the note that instruction `number` is done.
  cudaError_t mark(uint32_t number, cudaStream_t stream) {
    return cudaMemcpyAsync(last_.get(), numbers_.get() + number, sizeof(uint32_t), cudaMemcpyDeviceToHost,
                           stream);
  }

  uint32_t last() const { return last_ == nullptr ? 0 : *static_cast<const volatile uint32_t*>(last_.get()); }

 private:
  DeviceMemory<uint32_t> numbers_;  // 0, 1, 2, ...: what marks copy
  PinnedMemory<uint32_t> last_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(Execution execution) : execution_(execution) {}
  ~CudaDevice() override { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  Status open() {
    int device = 0;
    MOEC_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
    MOEC_RETURN_IF_CUDA_ERROR(
        cudaDeviceGetAttribute(&context_.sm_count, cudaDevAttrMultiProcessorCount, device));
    context_.kernels_overlap = cuda::kernels_can_overlap();
    cudaStream_t stream = nullptr;
    MOEC_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
    for (CudaEvent* event : {&start_, &stop_}) {
      cudaEvent_t handle = nullptr;
      MOEC_RETURN_IF_CUDA_ERROR(cudaEventCreate(&handle));
      event->reset(handle);
    }
    return open_cublas();
  }

  std::string_view name() const override { return "cuda"; }
  bool has_kernel(std::string_view key) const override { return cuda::find_kernel(key) != nullptr; }
  Status wait() override { return checked(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize"); }

 private:
  Status open_cublas() {
    cublasHandle_t cublas = nullptr;
    MOEC_RETURN_IF_ERROR(cublas_status(cublasCreate(&cublas), "cublasCreate"));
    cublas_.reset(cublas);
    cublasLtHandle_t cublas_lt = nullptr;
    MOEC_RETURN_IF_ERROR(cublas_status(cublasLtCreate(&cublas_lt), "cublasLtCreate"));
    cublas_lt_.reset(cublas_lt);
    void* workspace = nullptr;
    MOEC_RETURN_IF_CUDA_ERROR(cudaMalloc(&workspace, kCublasWorkspaceBytes));
    cublas_workspace_.reset(static_cast<std::byte*>(workspace));
    MOEC_RETURN_IF_ERROR(cublas_status(cublasSetStream(cublas, stream_.get()), "cublasSetStream"));
    // After the stream, which resets it.
    MOEC_RETURN_IF_ERROR(
        cublas_status(cublasSetWorkspace(cublas, workspace, kCublasWorkspaceBytes), "cublasSetWorkspace"));
    context_.stream = stream_.get();
    context_.cublas = cublas;
    context_.cublas_lt = cublas_lt;
    context_.cublas_workspace = workspace;
    context_.cublas_workspace_bytes = kCublasWorkspaceBytes;
    return {};
  }

  Result<void*> allocate(uint64_t size, bool zero) override {
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, size);
    if (error == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      size_t free = 0, total = 0;
      MOEC_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total));
      return failure(fmt::format("{} bytes are left of the GPU's {}", free, total));
    }
    MOEC_RETURN_IF_ERROR(cuda_status(error, "cudaMalloc"));
    arenas_.emplace_back(static_cast<std::byte*>(data));
    if (zero) MOEC_RETURN_IF_ERROR(fill(data, 0, size));
    return data;
  }

  Status fill(void* data, uint8_t value, uint64_t size) override {
    return checked(cudaMemsetAsync(data, value, size, stream_.get()), "cudaMemsetAsync");
  }

  Status copy_in(void* to, std::span<const std::byte> from) override {
    // Pageable memory is staged before the call returns, so `from` may change after it.
    return checked(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, stream_.get()),
                   "copy to the device");
  }

  Status copy_out(std::span<std::byte> to, const void* from) override {
    MOEC_RETURN_IF_ERROR(
        checked(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_.get()),
                "copy from the device"));
    return wait();
  }

  Status prepare() override {
    for (const Program& program : programs()) {
      first_number_.push_back(instructions_ + 1);
      std::vector<cuda::CudaKernel>& kernels = kernels_.emplace_back();
      for (const auto& instruction : program.plan->instructions)
        kernels.push_back(cuda::find_kernel(instruction->kernel));
      instructions_ += static_cast<uint32_t>(kernels.size());
    }
    has_run_.resize(programs().size());
    return progress_.create(instructions_);
  }

  Result<double> execute_one(size_t program, size_t instruction) override {
    in_graph_ = false;
    MOEC_RETURN_IF_ERROR(checked(cudaEventRecord(start_.get(), stream_.get()), "cudaEventRecord"));
    MOEC_RETURN_IF_ERROR(enqueue(program, instruction));
    MOEC_RETURN_IF_ERROR(checked(cudaEventRecord(stop_.get(), stream_.get()), "cudaEventRecord"));
    MOEC_RETURN_IF_ERROR(mark_completed(program, instruction));
    MOEC_RETURN_IF_ERROR(wait());
    float milliseconds = 0;
    MOEC_RETURN_IF_ERROR(
        checked(cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()), "cudaEventElapsedTime"));
    return static_cast<double>(milliseconds) * 1e-3;
  }

  Status execute(std::span<const size_t> programs) override {
    if (execution_ != Execution::kWhole && programs.size() > 1) {
      for (size_t i = 0; i < programs.size(); ++i) MOEC_RETURN_IF_ERROR(execute(programs.subspan(i, 1)));
      return {};
    }
    const bool known =
        std::all_of(programs.begin(), programs.end(), [&](size_t program) { return has_run_[program]; });
    if (execution_ == Execution::kEager || !known) {
      for (const size_t program : programs) MOEC_RETURN_IF_ERROR(run_eagerly(program));
      return {};
    }
    MOEC_ASSIGN_OR_RETURN(const cudaGraphExec_t graph, graph_of(programs));
    in_graph_ = true;
    return checked(cudaGraphLaunch(graph, stream_.get()), "cudaGraphLaunch");
  }

  /// Also what loads the kernels' code, which must not happen in a capture.
  Status run_eagerly(size_t program) {
    in_graph_ = false;
    MOEC_RETURN_IF_ERROR(checked(progress_.mark(0, stream_.get()), "cudaMemcpyAsync"));
    for (size_t i = 0; i < programs()[program].calls.size(); ++i) {
      MOEC_RETURN_IF_ERROR(enqueue(program, i));
      MOEC_RETURN_IF_ERROR(mark_completed(program, i));
    }
    has_run_[program] = true;
    return {};
  }

  Status enqueue(size_t program, size_t instruction) {
    const cudaError_t error =
        kernels_[program][instruction](programs()[program].calls[instruction], context_);
    return error == cudaSuccess ? Status() : checked(error, describe(program, instruction));
  }

  Status mark_completed(size_t program, size_t instruction) {
    const uint32_t number = first_number_[program] + static_cast<uint32_t>(instruction);
    return checked(progress_.mark(number, stream_.get()), "cudaMemcpyAsync");
  }

  /// The graph of a sequence of programs; captured when it is first asked for.
  Result<cudaGraphExec_t> graph_of(std::span<const size_t> programs) {
    for (const SequenceGraph& known : graphs_)
      if (std::equal(programs.begin(), programs.end(), known.programs.begin(), known.programs.end()))
        return known.executable.get();
    MOEC_ASSIGN_OR_RETURN(const CudaGraph graph, capture(programs));
    cudaGraphExec_t executable = nullptr;
    MOEC_RETURN_IF_CUDA_ERROR(cudaGraphInstantiate(&executable, graph.get(), 0));
    graphs_.push_back({{programs.begin(), programs.end()}, CudaGraphExec(executable)});
    MOEC_RETURN_IF_CUDA_ERROR(cudaGraphUpload(executable, stream_.get()));
    return executable;
  }

  Result<CudaGraph> capture(std::span<const size_t> programs) {
    MOEC_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    const Status enqueued = [&]() -> Status {
      for (const size_t program : programs)
        for (size_t i = 0; i < this->programs()[program].calls.size(); ++i)
          MOEC_RETURN_IF_ERROR(enqueue(program, i));
      return {};
    }();
    cudaGraph_t graph = nullptr;
    const Status ended = cuda_status(cudaStreamEndCapture(stream_.get(), &graph), "cudaStreamEndCapture");
    CudaGraph owner(graph);
    MOEC_RETURN_IF_ERROR(enqueued);
    MOEC_RETURN_IF_ERROR(ended);
    return owner;
  }

  /// The status of a call. An error that stays is a fault of the device: that and every later call fail with
  /// a message that says how far the device came.
  Status checked(cudaError_t error, std::string_view call) {
    if (fault_) return *fault_;
    if (error == cudaSuccess) return {};
    const Status status = cuda_status(error, call);
    if (cudaStreamQuery(stream_.get()) != error) return status;
    fault_ = failure(fmt::format("device fault: {} ({}); {}", cudaGetErrorString(error),
                                 cudaGetErrorName(error), last_completed()));
    return *fault_;
  }

  std::string last_completed() const {
    if (in_graph_) return "it happened in a graph: eager execution names the last completed instruction";
    const uint32_t number = progress_.last();
    if (number == 0) return "no instruction of the program under way was completed";
    const auto next = std::upper_bound(first_number_.begin(), first_number_.end(), number);
    const auto program = static_cast<size_t>(next - first_number_.begin() - 1);
    return "the last completed instruction is " + describe(program, number - first_number_[program]);
  }

  struct SequenceGraph {
    std::vector<size_t> programs;
    CudaGraphExec executable;
  };

  Execution execution_;
  CudaStream stream_;
  CudaEvent start_, stop_;
  CublasHandle cublas_;
  CublasLtHandle cublas_lt_;
  DeviceMemory<std::byte> cublas_workspace_;
  cuda::CudaContext context_;
  std::vector<DeviceMemory<std::byte>> arenas_;
  std::vector<std::vector<cuda::CudaKernel>> kernels_;  // per program and instruction
  std::vector<uint32_t> first_number_;                  // per program, of its first instruction
  uint32_t instructions_ = 0;
  std::vector<bool> has_run_;  // per program: eagerly, without a fault
  std::vector<SequenceGraph> graphs_;
  Progress progress_;
  bool in_graph_ = false;  // how the last run was submitted
  std::optional<Error> fault_;
};

}  // namespace

Status cuda_available() {
  CudaMachine machine;
  MOEC_RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&machine.driver_version));
  MOEC_RETURN_IF_CUDA_ERROR(cudaRuntimeGetVersion(&machine.runtime_version));
  // Fails where there is no usable driver or no GPU; the versions tell which.
  if (cudaGetDeviceCount(&machine.devices) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    machine.devices = 0;
  }
  return check_cuda_machine(machine);
}

Result<std::unique_ptr<Device>> make_cuda_device(Execution execution) {
  MOEC_RETURN_IF_ERROR(cuda_available());
  auto device = std::make_unique<CudaDevice>(execution);
  MOEC_RETURN_IF_ERROR(device->open());
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace moec::runtime
