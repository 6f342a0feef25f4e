// The gradients of the parameters of RMSNorm and LayerNorm over the last dimension D: few rows in one launch,
// the others by norm_bwd.cu.
#include "kernels/cuda/batched.h"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/norm_bwd.h"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

/// Rows and columns up to which one launch is faster than two.
constexpr int64_t kMostRows = 2048, kMostCols = 1024;

/// Threads of a block, and how many of them share a row: all have the same columns, 32 bytes of each row.
constexpr int kBlock = 512, kLanes = 2;
constexpr int kWarps = kBlock / kWarp;

template <class Grad>
struct ParameterGradient {
  Grad* data;  // null where it is not wanted
  bool accumulate;
};

template <class T, class Grad, class Acc = Accumulator<T>>
struct NormParameters {
  const T* dy;
  const T* x;
  const Acc* mean;  // read for LayerNorm only
  const Acc* rstd;
  ParameterGradient<Grad> weight;
  ParameterGradient<Grad> bias;
  int64_t rows;
  int cols;
};

/// Calls of the same kind; row y of the grid computes call y.
template <class T, class Grad>
struct NormParametersBatch {
  NormParameters<T, Grad> calls[kMostBatchedCalls];
};

/// A thread adds up its columns of every kBlock / kLanes-th row, then the block what its threads have, in an
/// order that only depends on their numbers.
template <bool kCentred, class T, class Grad, int kWidth>
__global__ void __launch_bounds__(kBlock)
    norm_parameters_kernel(const __grid_constant__ NormParametersBatch<T, Grad> batch) {
  begin_kernel();
  const NormParameters<T, Grad>& norm = batch.calls[blockIdx.y];
  using Acc = Accumulator<T>;
  const int thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kLanes * kWidth;
  const int col = first + thread % kLanes * kWidth;
  Acc sums[2][kWidth] = {};  // of the gradients of weight and bias
  if (col < norm.cols) {
#pragma unroll 4
    for (int64_t row = thread / kLanes; row < norm.rows; row += kBlock / kLanes) {
      Acc dy[kWidth], x[kWidth];
      unpack(load_packed<kWidth>(norm.dy + row * norm.cols + col, 0), dy);
      unpack(load_packed<kWidth>(norm.x + row * norm.cols + col, 0), x);
      const Acc mean = kCentred ? norm.mean[row] : Acc{0}, rstd = norm.rstd[row];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sums[0][j] += dy[j] * ((x[j] - mean) * rstd);
        sums[1][j] += dy[j];
      }
    }
  }

  constexpr int kResults = kLanes * 2 * kWidth;
  __shared__ Acc shared[kWarps][kResults];
#pragma unroll
  for (int i = 0; i < 2 * kWidth; ++i) {
    Acc sum = sums[i / kWidth][i % kWidth];
#pragma unroll
    for (int mask = kWarp / 2; mask >= kLanes; mask /= 2) sum += shuffle_xor(sum, mask);
    if (thread % kWarp < kLanes) shared[thread / kWarp][thread % kLanes * 2 * kWidth + i] = sum;
  }
  __syncthreads();
  if (thread >= kResults) return;
  const ParameterGradient<Grad> gradient = thread / kWidth % 2 == 0 ? norm.weight : norm.bias;
  const int to = first + thread / (2 * kWidth) * kWidth + thread % kWidth;
  if (gradient.data == nullptr || to >= norm.cols) return;
  Acc sum = gradient.accumulate ? static_cast<Acc>(gradient.data[to]) : Acc{0};
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp][thread];
  gradient.data[to] = to_storage<Grad>(sum);
}

/// All of the shape of the first, and with a mean where it has one.
template <class T, class Grad>
cudaError_t differentiate_at_once(std::span<const KernelCall* const> calls, const CudaContext& context) {
  const TensorView &first_x = calls[0]->inputs[1], &first_mean = calls[0]->inputs[2];
  const auto cols = static_cast<int>(first_x.cols());
  NormParametersBatch<T, Grad> batch = {};
  bool aligned = true;
  for (size_t i = 0; i < calls.size(); ++i) {
    const KernelCall& call = *calls[i];
    const TensorView &dy = call.inputs[0], &x = call.inputs[1];
    batch.calls[i] = {.dy = dy.as<const T>(),
                      .x = x.as<const T>(),
                      .mean = call.inputs[2].as<const Accumulator<T>>(),
                      .rstd = call.inputs[3].as<const Accumulator<T>>(),
                      .weight = {call.outputs[0].as<Grad>(), call.inputs[4].present()},
                      .bias = {call.outputs[1].as<Grad>(), call.inputs[5].present()},
                      .rows = x.rows(),
                      .cols = cols};
    aligned = aligned && whole_vectors(cols, kVectorWidth<T>, {&dy, &x});
  }
  const auto run = [&]<int kWidth>() {
    const auto kernel = first_mean.present() ? norm_parameters_kernel<true, T, Grad, kWidth>
                                             : norm_parameters_kernel<false, T, Grad, kWidth>;
    const dim3 grid(static_cast<unsigned>(ceil_div(cols, kLanes * kWidth)),
                    static_cast<unsigned>(calls.size()));
    return launch_grid(context, kernel, grid, kBlock, 0, batch);
  };
  if constexpr (kVectorWidth < T >> 1)
    if (aligned) return run.template operator()<kVectorWidth<T>>();
  return run.template operator()<1>();
}

bool takes_one_pass(const KernelCall& call) {
  return call.inputs[1].rows() <= kMostRows && call.inputs[1].cols() <= kMostCols;
}

/// Whether two calls can be made by one launch.
bool alike(const KernelCall& a, const KernelCall& b) {
  return a.inputs[1].dtype == b.inputs[1].dtype && a.outputs[0].dtype == b.outputs[0].dtype &&
         a.inputs[1].rows() == b.inputs[1].rows() && a.inputs[1].cols() == b.inputs[1].cols() &&
         a.inputs[2].present() == b.inputs[2].present();
}

}  // namespace

cudaError_t norm_bwd_parameters_batched(std::span<const KernelCall* const> calls,
                                        const CudaContext& context) {
  const KernelCall& first = *calls[0];
  const bool at_once = std::ranges::all_of(
      calls, [&](const KernelCall* call) { return takes_one_pass(*call) && alike(*call, first); });
  if (!at_once) {
    for (const KernelCall* call : calls)
      if (const cudaError_t error = norm_bwd_parameters(*call, context); error != cudaSuccess) return error;
    return cudaSuccess;
  }
  return with_type(first.inputs[1].dtype, [&]<class T>() {
    return with_gradient_type<T>(
        first.outputs[0].dtype, [&]<class Grad>() { return differentiate_at_once<T, Grad>(calls, context); });
  });
}

cudaError_t norm_bwd_parameters(const KernelCall& call, const CudaContext& context) {
  if (!takes_one_pass(call)) return norm_bwd_parameters_in_pieces(call, context);
  const KernelCall* const one = &call;
  return norm_bwd_parameters_batched({&one, 1}, context);
}

}  // namespace moec::cuda
