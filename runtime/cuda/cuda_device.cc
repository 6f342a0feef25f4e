#include "runtime/cuda/cuda_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cudnn/attention.h"
#include "kernels/cuda/variants.h"
#include "runtime/cuda/activity.h"
#include "runtime/cuda/call_sequence.h"
#include "runtime/cuda/cuda_check.h"
#include "runtime/cuda/cuda_handles.h"
#include "runtime/cuda/late_reads.h"
#include "runtime/cuda/nvtx_range.h"
#include "runtime/cuda/progress.h"
#include "runtime/cuda/schedule.h"
#include "runtime/cuda/staging.h"

namespace moec::runtime {
namespace {

/// What cuBLAS recommends for Hopper; a fixed size, because its choice of algorithm depends on it.
constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;

/// In a graph, completed instructions are marked about this often: a mark takes some two microseconds.
constexpr double kSecondsPerMark = 1e-3;

/// Bytes of the GPU's memory that are in use, by anyone.
Result<uint64_t> bytes_in_use() {
  size_t free = 0, total = 0;
  MOEC_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total));
  return total - free;
}

/// What was captured of a sequence of programs.
struct SequenceGraph {
  std::vector<size_t> programs;
  CudaGraphExec executable;
  std::vector<Place> nodes;  // while recording, of each node
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(Execution execution) : execution_(execution) {}
  ~CudaDevice() override { static_cast<void>(wait()); }

  Status open() {
    int device = 0;
    MOEC_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
    MOEC_RETURN_IF_CUDA_ERROR(
        cudaDeviceGetAttribute(&context_.sm_count, cudaDevAttrMultiProcessorCount, device));
    cudaDeviceProp properties = {};
    MOEC_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device));
    model_ = properties.name;
    context_.kernels_overlap = cuda::kernels_can_overlap();
    for (CudaStream& owner : streams_) {
      cudaStream_t stream = nullptr;
      MOEC_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      owner.reset(stream);
    }
    for (CudaEvent* event : {&start_, &stop_}) {
      cudaEvent_t handle = nullptr;
      MOEC_RETURN_IF_CUDA_ERROR(cudaEventCreate(&handle));
      event->reset(handle);
    }
    MOEC_RETURN_IF_ERROR(staging_.open());
    MOEC_RETURN_IF_ERROR(
        late_reads_.open([this](cudaError_t error, std::string_view call) { return checked(error, call); }));
    MOEC_ASSIGN_OR_RETURN(used_by_context_, bytes_in_use());
    MOEC_RETURN_IF_ERROR(open_cublas());
    MOEC_ASSIGN_OR_RETURN(used_when_open_, bytes_in_use());
    return {};
  }

  std::string_view name() const override { return "cuda"; }
  std::string_view model() const override { return model_; }
  bool has_kernel(std::string_view key) const override { return cuda::find_kernel(key) != nullptr; }
  bool has_variant(std::string_view key, std::string_view variant) const override {
    return cuda::find_variant(key, variant) != nullptr;
  }

  Status wait() override {
    MOEC_RETURN_IF_ERROR(checked(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize"));
    MOEC_RETURN_IF_ERROR(checked(staging_.wait(), "cudaStreamSynchronize"));
    return checked(late_reads_.wait(), "cudaStreamSynchronize");
  }

  bool records_replays() const override {
    return execution_ != Execution::kEager && ActivityRecorder::create().ok();
  }

  /// Graphs are captured anew: CUPTI sees the nodes only of those that are made while it looks.
  Status start_timeline(TimelineDetail detail) override {
    if (!records_replays()) return Device::start_timeline(detail);
    MOEC_RETURN_IF_ERROR(wait());
    graphs_.clear();
    launches_.clear();
    MOEC_ASSIGN_OR_RETURN(recorder_, ActivityRecorder::create());
    return recorder_->start(detail);
  }

  Result<Timeline> stop_timeline() override {
    if (recorder_ == nullptr) return Device::stop_timeline();
    const double end = recorder_->now();
    MOEC_RETURN_IF_ERROR(wait());
    MOEC_ASSIGN_OR_RETURN(const std::vector<Activity> activities, recorder_->stop());
    recorder_.reset();
    return timeline_of(activities, end);
  }

  Result<std::vector<MemoryUse>> memory_use() override {
    MOEC_ASSIGN_OR_RETURN(const uint64_t used, bytes_in_use());
    std::vector<MemoryUse> uses = {{"arenas", used_when_loaded_ - used_before_arenas_},
                                   {"context", used_by_context_},
                                   {"cuBLAS", used_when_open_ - used_by_context_}};
    if (used_by_cudnn_ > 0) uses.push_back({"cuDNN", used_by_cudnn_});
    uint64_t itemised = 0;
    for (const MemoryUse& use : uses) itemised += use.bytes;
    uses.push_back({"code, graphs, staging", used - std::min(used, itemised)});
    return uses;
  }

 private:
  Status open_cublas() {
    cublasLtHandle_t cublas_lt = nullptr;
    MOEC_RETURN_IF_ERROR(cublas_status(cublasLtCreate(&cublas_lt), "cublasLtCreate"));
    cublas_lt_.reset(cublas_lt);
    context_.cublas_lt = cublas_lt;
    context_.cudnn = &cudnn_;
    contexts_.fill(cuda::CudaContext(context_));
    for (size_t branch = 0; branch < kBranches; ++branch) {
      cuda::CudaContext& context = contexts_[branch];
      context.stream = streams_[branch].get();
      if (branch == kLargeCalls) continue;  // gradients of experts, which are no products of cuBLAS
      void* workspace = nullptr;
      MOEC_RETURN_IF_CUDA_ERROR(cudaMalloc(&workspace, kCublasWorkspaceBytes));
      cublas_workspaces_[branch].reset(static_cast<std::byte*>(workspace));
      context.cublas_workspace = workspace;
      context.cublas_workspace_bytes = kCublasWorkspaceBytes;
    }
    return {};
  }

  Result<void*> allocate(uint64_t size, bool zero) override {
    if (arenas_.empty()) {
      MOEC_ASSIGN_OR_RETURN(used_before_arenas_, bytes_in_use());
    }
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

  Status copy_to_stage(std::span<const std::byte> bytes) override { return or_fault(staging_.stage(bytes)); }

  Status copy_from_stage(void* to) override { return or_fault(staging_.copy_to(to, stream_.get())); }

  Result<std::unique_ptr<LateRead>> copy_out_later(const void* from, size_t bytes) override {
    return late_reads_.read(from, bytes, stream_.get());
  }

  Status prepare() override {
    MOEC_ASSIGN_OR_RETURN(used_when_loaded_, bytes_in_use());
    for (const Program& program : programs()) {
      first_number_.push_back(instructions_ + 1);
      std::vector<cuda::CudaKernel>& kernels = kernels_.emplace_back();
      for (size_t i = 0; i < program.calls.size(); ++i) MOEC_RETURN_IF_ERROR(resolve(program, i, kernels));
      instructions_ += static_cast<uint32_t>(kernels.size());
    }
    has_run_.resize(programs().size());
    MOEC_RETURN_IF_ERROR(reserve_for_cudnn());
    return progress_.create(instructions_);
  }

  /// Scratch memory for the variants that cuDNN computes. There is but one, of the first stream.
  Status reserve_for_cudnn() {
    const size_t bytes = cudnn_.workspace_bytes();
    if (bytes == 0) return {};
    void* workspace = nullptr;
    MOEC_RETURN_IF_ERROR(cuda_status(cudaMalloc(&workspace, bytes),
                                     fmt::format("{} bytes of scratch memory for cuDNN", bytes)));
    cudnn_workspace_.reset(static_cast<std::byte*>(workspace));
    context_.cudnn_workspace = workspace;
    context_.cudnn_workspace_bytes = bytes;
    MOEC_ASSIGN_OR_RETURN(const uint64_t used, bytes_in_use());
    used_by_cudnn_ = std::max<uint64_t>(bytes, used - std::min(used, used_when_loaded_));
    return {};
  }

  std::vector<std::string_view> variants_for(std::string_view kernel, const KernelCall& call) const override {
    std::vector<std::string_view> names;
    for (const cuda::CudaVariant* variant : cuda::variants_for(kernel, call, context_))
      names.push_back(variant->name);
    return names;
  }

  /// Adds what computes instruction `i`: its variant, or the kernel.
  Status resolve(const Program& program, size_t i, std::vector<cuda::CudaKernel>& to) const {
    const fb::InstructionT& instruction = *program.plan->instructions[i];
    if (program.variants[i].empty()) {
      to.push_back(cuda::find_kernel(instruction.kernel));
      return {};
    }
    const cuda::CudaVariant& variant = *cuda::find_variant(instruction.kernel, program.variants[i]);
    if (!variant.computes(program.calls[i], context_))
      return input_error(
          fmt::format("{} instruction {} '{}': variant '{}' of {} does not compute this call here",
                      fb::EnumNameProgramKind(program.plan->kind), i, instruction.label, variant.name,
                      instruction.kernel));
    to.push_back(variant.run);
    return {};
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
    MOEC_ASSIGN_OR_RETURN(const size_t graph, graph_of(programs));
    if (recorder_ != nullptr) launches_.push_back(graph);
    in_graph_ = true;
    const NvtxRange range("replay");
    return checked(cudaGraphLaunch(graphs_[graph].executable.get(), stream_.get()), "cudaGraphLaunch");
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

  Status enqueue(size_t program, size_t instruction) { return enqueue(program, instruction, context_); }

  Status enqueue(size_t program, size_t instruction, const cuda::CudaContext& context) {
    const NvtxRange range(programs()[program].plan->instructions[instruction]->label.c_str());
    const cudaError_t error = kernels_[program][instruction](programs()[program].calls[instruction], context);
    return error == cudaSuccess ? Status() : checked(error, describe(program, instruction));
  }

  Status mark_completed(size_t program, size_t instruction) {
    const uint32_t number = first_number_[program] + static_cast<uint32_t>(instruction);
    return checked(progress_.mark(number, stream_.get()), "cudaMemcpyAsync");
  }

  /// Index of the graph of a sequence of programs; captured when it is first asked for.
  Result<size_t> graph_of(std::span<const size_t> programs) {
    const auto known = std::find_if(graphs_.begin(), graphs_.end(), [&](const SequenceGraph& graph) {
      return std::equal(programs.begin(), programs.end(), graph.programs.begin(), graph.programs.end());
    });
    if (known != graphs_.end()) return static_cast<size_t>(known - graphs_.begin());
    SequenceGraph sequence{.programs = {programs.begin(), programs.end()}, .executable = {}, .nodes = {}};
    MOEC_ASSIGN_OR_RETURN(const CudaGraph graph, capture(sequence));
    cudaGraphExec_t executable = nullptr;
    MOEC_RETURN_IF_CUDA_ERROR(cudaGraphInstantiate(&executable, graph.get(), 0));
    sequence.executable.reset(executable);
    MOEC_RETURN_IF_CUDA_ERROR(cudaGraphUpload(executable, stream_.get()));
    MOEC_RETURN_IF_CUDA_ERROR(progress_.mark(0, stream_.get()));  // eager runs have left theirs
    graphs_.push_back(std::move(sequence));
    return graphs_.size() - 1;
  }

  Result<CudaGraph> capture(SequenceGraph& sequence) {
    MOEC_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    const Status enqueued = enqueue_sequence(sequence);
    cudaGraph_t graph = nullptr;
    const Status ended = cuda_status(cudaStreamEndCapture(stream_.get(), &graph), "cudaStreamEndCapture");
    CudaGraph owner(graph);
    if (!enqueued.ok()) return enqueued.error();
    if (!ended.ok()) return ended.error();
    return owner;
  }

  /// In one stream, call by call, while a timeline is recorded, which shows one instruction after the other.
  Status enqueue_sequence(SequenceGraph& graph) {
    const CallSequence sequence(calls_of(graph.programs), recorder_ == nullptr, context_);
    const std::span<const ScheduledLaunch> schedule = sequence.schedule();
    ScheduledStreams streams({streams_[0].get(), streams_[1].get(), streams_[2].get()}, schedule);
    double since_mark = 0;
    for (size_t number = 0; number < schedule.size(); ++number) {
      const ScheduledLaunch& launch = schedule[number];
      const auto& [program, i] = sequence.place(launch);
      const cuda::CudaContext& context = contexts_[launch.branch];
      MOEC_RETURN_IF_CUDA_ERROR(streams.before(number));
      if (sequence.is_alone(launch))
        MOEC_RETURN_IF_ERROR(enqueue(program, i, context));
      else
        MOEC_RETURN_IF_ERROR(
            checked(sequence.enqueue_together(launch, context), "several calls in one launch"));
      MOEC_RETURN_IF_CUDA_ERROR(streams.after(number));
      if (launch.branch == kChain) since_mark += sequence.least_seconds(launch);
      if (since_mark >= kSecondsPerMark) {
        MOEC_RETURN_IF_ERROR(mark_completed(program, i));
        since_mark = 0;
      }
      if (recorder_ == nullptr) continue;
      MOEC_ASSIGN_OR_RETURN(const size_t nodes, captured_nodes());
      graph.nodes.resize(nodes, {program, i});
    }
    MOEC_RETURN_IF_CUDA_ERROR(streams.join());
    return {};
  }

  std::vector<PlacedCall> calls_of(std::span<const size_t> sequence) const {
    std::vector<PlacedCall> calls;
    for (const size_t number : sequence) {
      const Program& program = programs()[number];
      for (size_t i = 0; i < program.calls.size(); ++i)
        calls.push_back(
            {{number, i}, program.plan->instructions[i].get(), program.variants[i], &program.calls[i]});
    }
    return calls;
  }

  Result<size_t> captured_nodes() {
    cudaStreamCaptureStatus status{};
    cudaGraph_t graph = nullptr;
#if CUDART_VERSION >= 13000
    MOEC_RETURN_IF_CUDA_ERROR(cudaStreamGetCaptureInfo(stream_.get(), &status, nullptr, &graph));
#else
    MOEC_RETURN_IF_CUDA_ERROR(cudaStreamGetCaptureInfo_v2(stream_.get(), &status, nullptr, &graph));
#endif
    size_t nodes = 0;
    MOEC_RETURN_IF_CUDA_ERROR(cudaGraphGetNodes(graph, nullptr, &nodes));
    return nodes;
  }

  /// Waits of the host that began after `end` are those of the recording.
  Result<Timeline> timeline_of(const std::vector<Activity>& activities, double end) const {
    Timeline timeline{.method = "CUPTI, of replayed graphs"};
    std::map<uint32_t, std::vector<TimeSpan>> nodes;  // by launch
    for (const Activity& activity : activities) {
      const TimeSpan span{activity.begin, activity.end};
      if (activity.kind == Activity::Kind::kReplay) timeline.replays.push_back(span);
      if (activity.kind == Activity::Kind::kHostWait && span.begin < end) ++timeline.host_waits;
      if (activity.kind == Activity::Kind::kNode) nodes[activity.launch].push_back(span);
    }
    const auto by_begin = [](const TimeSpan& a, const TimeSpan& b) { return a.begin < b.begin; };
    std::sort(timeline.replays.begin(), timeline.replays.end(), by_begin);
    if (nodes.empty()) return timeline;
    if (nodes.size() != launches_.size())
      return failure(fmt::format("CUPTI saw {} of {} replays", nodes.size(), launches_.size()));
    auto launched = launches_.begin();
    double end_before = 0;
    for (auto& [launch, spans] : nodes) {
      std::sort(spans.begin(), spans.end(), by_begin);  // a graph is a chain
      const SequenceGraph& graph = graphs_[*launched++];
      if (spans.size() != graph.nodes.size())
        return failure(
            fmt::format("CUPTI saw {} of the {} nodes of a replay", spans.size(), graph.nodes.size()));
      for (size_t i = 0; i < spans.size(); ++i) {
        const auto [program, instruction] = graph.nodes[i];
        // A kernel that was started early has waited for the one in front of it.
        const TimeSpan worked{std::max(spans[i].begin, end_before), std::max(spans[i].end, end_before)};
        if (i > 0 && graph.nodes[i] == graph.nodes[i - 1])
          timeline.instructions.back().time.end = worked.end;
        else
          timeline.instructions.push_back({worked, program, instruction});
        end_before = worked.end;
      }
    }
    return timeline;
  }

  /// The status of a call. An error that stays is a fault of the device: that and every later call fail with
  /// a message that says how far the device came.
  Status checked(cudaError_t error, std::string_view call) {
    if (fault_) return *fault_;
    if (error == cudaSuccess) return {};
    Status status = cuda_status(error, call);
    if (cudaStreamQuery(stream_.get()) != error) return status;
    fault_ = failure(fmt::format("device fault: {} ({}); {}", cudaGetErrorString(error),
                                 cudaGetErrorName(error), last_completed()));
    return *fault_;
  }

  /// The status of several calls; a fault of the device comes before what they say of it.
  Status or_fault(const Status& status) {
    if (status.ok()) return {};
    const cudaError_t error = cudaStreamQuery(stream_.get());
    return error == cudaSuccess || error == cudaErrorNotReady ? status : checked(error, "cudaStreamQuery");
  }

  std::string last_completed() const {
    const uint32_t number = progress_.last();
    if (number == 0 && in_graph_)
      return "it happened in a graph, before a mark: eager execution names the last completed instruction";
    if (number == 0) return "no instruction of the program under way was completed";
    const auto next = std::upper_bound(first_number_.begin(), first_number_.end(), number);
    const auto program = static_cast<size_t>(next - first_number_.begin() - 1);
    return fmt::format("the last completed instruction{} is {}", in_graph_ ? " that the graph marks" : "",
                       describe(program, number - first_number_[program]));
  }

  Execution execution_;
  std::string model_;
  std::array<CudaStream, kBranches> streams_;
  CudaStream& stream_ = streams_[kChain];
  CudaEvent start_, stop_;
  CublasLtHandle cublas_lt_;
  std::array<DeviceMemory<std::byte>, kBranches> cublas_workspaces_;
  cuda::CudnnAttention cudnn_;
  DeviceMemory<std::byte> cudnn_workspace_;
  std::array<cuda::CudaContext, kBranches> contexts_;
  cuda::CudaContext& context_ = contexts_[kChain];
  std::vector<DeviceMemory<std::byte>> arenas_;
  std::vector<std::vector<cuda::CudaKernel>> kernels_;  // per program and instruction
  std::vector<uint32_t> first_number_;                  // per program, of its first instruction
  uint32_t instructions_ = 0;
  std::vector<bool> has_run_;  // per program: eagerly, without a fault
  std::vector<SequenceGraph> graphs_;
  std::unique_ptr<ActivityRecorder> recorder_;  // while a timeline is recorded
  std::vector<size_t> launches_;                // of graphs, since the recording began
  Staging staging_;
  LateReads late_reads_;
  Progress progress_;
  // Bytes of the GPU's memory.
  uint64_t used_by_context_ = 0, used_when_open_ = 0, used_by_cudnn_ = 0;
  uint64_t used_before_arenas_ = 0, used_when_loaded_ = 0;
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
