// Affine maps of the last dimension: y = x weight^T (+ bias). x[R,I] and y[R,O] stand for any leading
// dimensions.
#include <algorithm>

#include "kernels/cuda/bias_gradient.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/product.h"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

/// Multiply-adds up to which an f32 product is small: cuBLAS would leave most of the device idle.
constexpr int64_t kSmallProduct = int64_t{1} << 27;
/// Rows up to which columns are summed in one pass.
constexpr int64_t kSinglePassRows = 2048;

ProductMatrix as_matrix(const TensorView& tensor) {
  return {tensor.data, tensor.dtype, tensor.rows(), tensor.cols()};
}

/// Block (x, y) sums rows of its range y to row y of out[.., cols], or adds to it.
template <class T, class TOut>
__global__ void __launch_bounds__(kSumThreads)
    sum_columns(const T* in, int64_t rows, int64_t cols, int64_t range, TOut* out, bool accumulate) {
  begin_kernel();
  const int64_t begin = blockIdx.y * range;
  auto sum = column_sum(in, begin, min(begin + range, rows), cols);
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kSumCols + threadIdx.x;
  if (threadIdx.x >= kSumCols || col >= cols) return;
  TOut* to = out + blockIdx.y * cols + col;
  if (accumulate) sum += widen(*to);
  *to = to_storage<TOut>(sum);
}

template <class T, class TOut>
cudaError_t launch_bias_bwd(const KernelCall& call, const CudaContext& context) {
  using Acc = Accumulator<T>;
  const TensorView& dy = call.inputs[0];
  const bool accumulate = call.inputs[1].present();
  const int64_t rows = dy.rows(), cols = dy.cols();
  const int64_t groups = ceil_div(cols, kSumCols);
  const T* in = dy.as<const T>();
  TOut* out = call.outputs[0].as<TOut>();
  if (rows <= kSinglePassRows) {
    return launch(context, sum_columns<T, TOut>, groups, kSumThreads, in, rows, cols, rows, out, accumulate);
  }
  const int64_t range = ceil_div(rows, kColumnPartials), partials = ceil_div(rows, range);
  Acc* sums = call.workspace.as<Acc>();
  const cudaError_t error = launch_grid(context, sum_columns<T, Acc>,
                                        dim3(static_cast<unsigned>(groups), static_cast<unsigned>(partials)),
                                        kSumThreads, 0, in, rows, cols, range, sums, false);
  if (error != cudaSuccess) return error;
  return launch(context, sum_columns<Acc, TOut>, groups, kSumThreads, sums, partials, cols, partials, out,
                accumulate);
}

}  // namespace

cudaError_t multiply(const Product& product, const CudaContext& context) {
  const bool small =
      product.b.dtype == fb::DType::F32 && product.m() * product.n() * product.k() <= kSmallProduct;
  return small || !cublas_supports(product) ? multiply_tiled(product, context)
                                            : multiply_cublas(product, context);
}

cudaError_t linear(const KernelCall& call, const CudaContext& context) {
  return multiply({.form = ProductForm::kForward,
                   .a = as_matrix(call.inputs[0]),
                   .b = as_matrix(call.inputs[1]),
                   .c = as_matrix(call.outputs[0]),
                   .bias = call.inputs[2].data},
                  context);
}

cudaError_t linear_bwd_input(const KernelCall& call, const CudaContext& context) {
  return multiply({.form = ProductForm::kInput,
                   .a = as_matrix(call.inputs[0]),
                   .b = as_matrix(call.inputs[1]),
                   .c = as_matrix(call.outputs[0])},
                  context);
}

cudaError_t linear_bwd_weight(const KernelCall& call, const CudaContext& context) {
  return multiply({.form = ProductForm::kWeight,
                   .a = as_matrix(call.inputs[0]),
                   .b = as_matrix(call.inputs[1]),
                   .c = as_matrix(call.outputs[0]),
                   .accumulate = call.inputs[2].present()},
                  context);
}

/// Many rows are summed in ranges, to partial sums [kColumnPartials, O], which are then added in order.
cudaError_t bias_bwd(const KernelCall& call, const CudaContext& context) {
  using enum fb::DType;
  const fb::DType in = call.inputs[0].dtype, out = call.outputs[0].dtype;
  if (in == F32 && out == F32) return launch_bias_bwd<float, float>(call, context);
  if (in == F32 && out == BF16) return launch_bias_bwd<float, bf16>(call, context);
  if (in == BF16 && out == F32) return launch_bias_bwd<bf16, float>(call, context);
  if (in == BF16 && out == BF16) return launch_bias_bwd<bf16, bf16>(call, context);
  if (in == F32 && out == F16) return launch_bias_bwd<float, f16>(call, context);
  if (in == F16 && out == F32) return launch_bias_bwd<f16, float>(call, context);
  if (in == F16 && out == F16) return launch_bias_bwd<f16, f16>(call, context);
  if (in == F64 && out == F64) return launch_bias_bwd<double, double>(call, context);
  return cudaErrorNotSupported;
}

}  // namespace moec::cuda
