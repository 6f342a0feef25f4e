// What selects tokens: the batch of a step, and the last position of a prompt.
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/shuffle.h"
#include "kernels/train_state.h"

namespace moec::cuda {
namespace {

/// Tokens that a block copies.
constexpr int kBlockTokens = 1024;

__global__ void __launch_bounds__(kThreads)
    load_batch_kernel(const int32_t* window, const TrainState* state, fb::Sampling sampling, bool evaluate,
                      int64_t batch, int64_t seq_len, int32_t* tokens, int32_t* targets) {
  begin_kernel();
  const int64_t blocks = ceil_div(seq_len, kBlockTokens);
  const int64_t b = blockIdx.x / blocks, begin = blockIdx.x % blocks * kBlockTokens;
  const int32_t* first = window + sequence_start(*state, sampling, evaluate, batch, seq_len, b);
  for (int64_t s = begin + threadIdx.x; s < min(seq_len, begin + kBlockTokens); s += kThreads) {
    tokens[b * seq_len + s] = first[s];
    targets[b * seq_len + s] = first[s + 1];
  }
}

/// The row of the last token of sequence b.
struct LastToken {
  const TrainState* state;
  int64_t seq_len;

  __device__ int64_t operator()(int64_t b) const { return b * seq_len + state->last_token; }
};

}  // namespace

/// The window holds at least seq_len + 1 valid tokens, as the runtime checks.
cudaError_t load_batch(const KernelCall& call, const CudaContext& context) {
  const TensorView &tokens = call.outputs[0], &targets = call.outputs[1];
  const auto& attrs = call.attrs<fb::LoadBatchT>();
  const int64_t batch = tokens.rows(), seq_len = tokens.cols();
  return launch(context, load_batch_kernel, batch * ceil_div(seq_len, kBlockTokens), kThreads,
                call.inputs[0].as<const int32_t>(), call.inputs[1].as<const TrainState>(), attrs.sampling,
                attrs.evaluate, batch, seq_len, tokens.as<int32_t>(), targets.as<int32_t>());
}

cudaError_t select_token(const KernelCall& call, const CudaContext& context) {
  const TensorView& x = call.inputs[0];
  return copy_rows(context, x, call.outputs[0], x.dim(0),
                   LastToken{call.inputs[1].as<const TrainState>(), x.dim(1)});
}

}  // namespace moec::cuda
