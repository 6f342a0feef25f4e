#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels/cuda/cudnn/attention.h"
#include "kernels/cuda/cudnn/attention_graphs.h"

namespace moec::cuda {
namespace {

/// Older ones err in the gradient for lengths that are no multiple of 128.
constexpr size_t kOldestVersion = 91600;

cudaError_t to_cuda_error(cudnnStatus_t status) {
  if (status == CUDNN_STATUS_SUCCESS) return cudaSuccess;
  return CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED ? cudaErrorNotSupported
                                                                     : cudaErrorLaunchFailure;
}

const TensorView& packed(AttentionPass pass, const KernelCall& call) {
  return call.inputs[pass == AttentionPass::kForward ? 0 : 1];
}

AttentionShape shape_of(AttentionPass pass, const KernelCall& call) {
  return {call.attrs<fb::AttentionT>(), packed(pass, call)};
}

/// Whether the graphs are for calls like this. cuDNN differentiates no single positions.
bool fits(AttentionPass pass, const KernelCall& call) {
  const TensorView& qkv = packed(pass, call);
  const AttentionShape shape = shape_of(pass, call);
  const auto aligned = [](const TensorView& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; };
  return (qkv.dtype == fb::DType::BF16 || qkv.dtype == fb::DType::F16) &&
         (shape.dim == 64 || shape.dim == 128) && shape.batch > 0 && shape.seq > 1 &&
         std::ranges::all_of(call.inputs, aligned) && std::ranges::all_of(call.outputs, aligned);
}

/// Addresses of the heads of queries, keys and values in packed rows.
std::array<void*, 3> heads_of(const AttentionShape& shape, const TensorView& rows) {
  const int64_t head = shape.dim * dtype_size(rows.dtype);
  std::byte* const data = rows.as<std::byte>();
  return {data, data + shape.heads * head, data + (shape.heads + shape.kv_heads) * head};
}

/// In the order of the graph's operands.
std::vector<void*> operands_of(AttentionPass pass, const KernelCall& call) {
  const AttentionShape shape = shape_of(pass, call);
  const auto [queries, keys, values] = heads_of(shape, packed(pass, call));
  if (pass == AttentionPass::kForward)
    return {queries, keys, values, call.outputs[0].data, call.outputs[1].data};
  const auto [dqueries, dkeys, dvalues] = heads_of(shape, call.outputs[0]);
  return {queries,
          keys,
          values,
          call.inputs[2].data,
          call.inputs[0].data,
          call.inputs[3].data,
          call.workspace.data,
          dqueries,
          dkeys,
          dvalues};
}

struct DestroyHandle {
  decltype(&::cudnnDestroy) destroy = nullptr;
  void operator()(cudnnHandle_t handle) const { static_cast<void>(destroy(handle)); }
};

size_t free_bytes() {
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

/// Whether the current GPU is of compute capability 9.0.
bool is_hopper() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

}  // namespace

struct CudnnAttention::State {
  /// All that a plan depends on: pass, type, batch, seq, heads, kv_heads, dim.
  using Kind = std::tuple<AttentionPass, fb::DType, int, int, int, int, int>;

  cudnn::Library library;
  std::unique_ptr<std::remove_pointer_t<cudnnHandle_t>, DestroyHandle> handle;
  bool opened = false;
  std::map<Kind, std::optional<cudnn::Plan>> plans;  // nothing where cuDNN does not compute the calls

  static Kind kind(AttentionPass pass, const KernelCall& call) {
    const AttentionShape shape = shape_of(pass, call);
    return {pass, packed(pass, call).dtype, shape.batch, shape.seq, shape.heads, shape.kv_heads, shape.dim};
  }

  /// Whether there is a library of a version that we know, and a GPU that it supports.
  bool open() {
    if (opened) return handle != nullptr;
    opened = true;
    cudnnHandle_t created = nullptr;
    if (!library.load() || library.cudnnGetVersion() < kOldestVersion ||
        library.cudnnCreate(&created) != CUDNN_STATUS_SUCCESS)
      return false;
    handle = {created, {library.cudnnDestroy}};
    return true;
  }

  std::optional<cudnn::Plan> make_plan(AttentionPass pass, const KernelCall& call) {
    const AttentionShape shape = shape_of(pass, call);
    const cudnnDataType_t type =
        packed(pass, call).dtype == fb::DType::BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
    return pass == AttentionPass::kForward ? forward_graph(library, shape, type).plan(handle.get())
                                           : backward_graph(library, shape, type).plan(handle.get());
  }
};

CudnnAttention::CudnnAttention() : state_(std::make_unique<State>()) {}
CudnnAttention::~CudnnAttention() = default;

bool CudnnAttention::available() { return state_->open(); }

bool CudnnAttention::computes(AttentionPass pass, const KernelCall& call) {
  if (!fits(pass, call) || !state_->open()) return false;
  if (pass == AttentionPass::kBackward && !is_hopper()) return false;
  const auto [known, added] = state_->plans.try_emplace(State::kind(pass, call));
  if (added) known->second = state_->make_plan(pass, call);
  return known->second && known->second->workspace_bytes() <= free_bytes();
}

size_t CudnnAttention::workspace_bytes() const {
  size_t most = 0;
  for (const auto& [kind, plan] : state_->plans)
    if (plan) most = std::max(most, plan->workspace_bytes());
  return most;
}

cudaError_t CudnnAttention::run(AttentionPass pass, const KernelCall& call,
                                const CudaContext& context) const {
  const auto known = state_->plans.find(State::kind(pass, call));
  if (known == state_->plans.end() || !known->second) return cudaErrorNotSupported;
  const cudnn::Plan& plan = *known->second;
  if (plan.workspace_bytes() > context.cudnn_workspace_bytes) return cudaErrorMemoryAllocation;
  const cudnnStatus_t status = state_->library.cudnnSetStream(state_->handle.get(), context.stream);
  if (status != CUDNN_STATUS_SUCCESS) return to_cuda_error(status);
  return to_cuda_error(
      plan.execute(state_->library, state_->handle.get(), operands_of(pass, call), context.cudnn_workspace));
}

}  // namespace moec::cuda
