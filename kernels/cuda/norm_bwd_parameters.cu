// The gradients of the parameters of RMSNorm and LayerNorm over the last dimension D: few rows in one launch,
// the others by norm_bwd.cu.
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

/// A thread adds up its columns of every kBlock / kLanes-th row, then the block what its threads have, in an
/// order that only depends on their numbers.
template <bool kCentred, class T, class Grad, int kWidth>
__global__ void __launch_bounds__(kBlock) norm_parameters_kernel(const NormParameters<T, Grad> norm) {
  begin_kernel();
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

template <class T, class Grad>
cudaError_t differentiate_at_once(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &mean = call.inputs[2];
  const NormParameters<T, Grad> norm = {.dy = dy.as<const T>(),
                                        .x = x.as<const T>(),
                                        .mean = mean.as<const Accumulator<T>>(),
                                        .rstd = call.inputs[3].as<const Accumulator<T>>(),
                                        .weight = {call.outputs[0].as<Grad>(), call.inputs[4].present()},
                                        .bias = {call.outputs[1].as<Grad>(), call.inputs[5].present()},
                                        .rows = x.rows(),
                                        .cols = static_cast<int>(x.cols())};
  return with_width<T>(norm.cols, {&dy, &x}, [&]<int kWidth>() {
    const auto kernel = mean.present() ? norm_parameters_kernel<true, T, Grad, kWidth>
                                       : norm_parameters_kernel<false, T, Grad, kWidth>;
    return launch(context, kernel, ceil_div(norm.cols, kLanes * kWidth), kBlock, norm);
  });
}

}  // namespace

cudaError_t norm_bwd_parameters(const KernelCall& call, const CudaContext& context) {
  const TensorView& x = call.inputs[1];
  if (x.rows() > kMostRows || x.cols() > kMostCols) return norm_bwd_parameters_in_pieces(call, context);
  return with_type(x.dtype, [&]<class T>() {
    return with_gradient_type<T>(call.outputs[0].dtype,
                                 [&]<class Grad>() { return differentiate_at_once<T, Grad>(call, context); });
  });
}

}  // namespace moec::cuda
