// Affine maps of the last dimension: y = x weight^T (+ bias), alone and with what precedes or follows them.
// x[R,I] and y[R,O] stand for any leading dimensions.
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

/// The gradient dbias[O] of dy[R,O]. Many rows are summed in ranges, to partial sums [kColumnPartials, O] in
/// `workspace`, which are then added in order.
template <class T, class TOut>
cudaError_t launch_bias_bwd(const TensorView& dy, const TensorView& dbias, bool accumulate,
                            const TensorView& workspace, const CudaContext& context) {
  using Acc = Accumulator<T>;
  const int64_t rows = dy.rows(), cols = dy.cols();
  const int64_t groups = ceil_div(cols, kSumCols);
  const T* in = dy.as<const T>();
  TOut* out = dbias.as<TOut>();
  if (rows <= kSinglePassRows) {
    return launch(context, sum_columns<T, TOut>, groups, kSumThreads, in, rows, cols, rows, out, accumulate);
  }
  const int64_t range = ceil_div(rows, kColumnPartials), partials = ceil_div(rows, range);
  Acc* sums = workspace.as<Acc>();
  const cudaError_t error = launch_grid(context, sum_columns<T, Acc>,
                                        dim3(static_cast<unsigned>(groups), static_cast<unsigned>(partials)),
                                        kSumThreads, 0, in, rows, cols, range, sums, false);
  if (error != cudaSuccess) return error;
  return launch(context, sum_columns<Acc, TOut>, groups, kSumThreads, sums, partials, cols, partials, out,
                accumulate);
}

cudaError_t bias_gradient(const TensorView& dy, const TensorView& dbias, bool accumulate,
                          const TensorView& workspace, const CudaContext& context) {
  return with_type(dy.dtype, [&]<class T>() {
    return with_type(dbias.dtype, [&]<class TOut>() -> cudaError_t {
      if constexpr (std::is_same_v<Accumulator<T>, Accumulator<TOut>>)
        return launch_bias_bwd<T, TOut>(dy, dbias, accumulate, workspace, context);
      else
        return cudaErrorNotSupported;
    });
  });
}

/// Applies the epilogue to the sums at z, where y may lie; a thread per run of four.
template <EpilogueKind kKind, class T>
__global__ void epilogue_kernel(const T* z, T* y, int64_t n, bool aligned, Epilogue epilogue) {
  begin_kernel();
  const int64_t place = global_thread() * 4;
  if (place >= n) return;
  const int count = static_cast<int>(min(int64_t{4}, n - place));
  const bool whole = aligned && count == 4;
  const EpilogueRun<T> run = fetch_run<kKind, T>(epilogue, place, count, whole);
  Vector<Accumulator<T>, 4> sums;
  unpack(load_run(z + place, count, whole), sums.value);
  apply_epilogue<kKind>(epilogue, run, place, count, whole, sums);
  store_run(y + place, count, whole, sums);
}

/// The product by cuBLAS, and then its epilogue in a pass of its own.
cudaError_t multiply_in_two_passes(const Product& product, const CudaContext& context) {
  Product sums = product;
  sums.epilogue = {};
  Epilogue epilogue = product.epilogue;
  if (!epilogue.backward && epilogue.preactivation) {
    sums.c.data = epilogue.preactivation;
    epilogue.preactivation = nullptr;
  }
  const cudaError_t error = multiply_cublas(sums, context);
  if (error != cudaSuccess) return error;
  const int64_t n = product.m() * product.n();
  return with_type(product.c.dtype, [&]<class T>() {
    const auto* z = static_cast<const T*>(sums.c.data);
    auto* y = static_cast<T*>(const_cast<void*>(product.c.data));
    const bool aligned = runs_aligned(z, 0) && runs_aligned(y, 0) &&
                         runs_aligned(static_cast<const T*>(epilogue.preactivation), 0) &&
                         runs_aligned(static_cast<const T*>(epilogue.residual), 0);
    const auto kernel = epilogue.backward ? epilogue_kernel<EpilogueKind::kBackward, T>
                                          : epilogue_kernel<EpilogueKind::kForward, T>;
    return launch(context, kernel, ceil_div(ceil_div(n, 4), kThreads), kThreads, z, y, n, aligned, epilogue);
  });
}

Product input_gradient(const TensorView& dy, const TensorView& weight, const TensorView& dx) {
  return {.form = ProductForm::kInput, .a = as_matrix(dy), .b = as_matrix(weight), .c = as_matrix(dx)};
}

Product weight_gradient(const TensorView& dy, const TensorView& x, const TensorView& dweight,
                        bool accumulate) {
  return {.form = ProductForm::kWeight,
          .a = as_matrix(dy),
          .b = as_matrix(x),
          .c = as_matrix(dweight),
          .accumulate = accumulate};
}

/// f32 products up to kSmallProduct. In bf16 a chain of layers is as fast by cuBLAS.
bool is_small(const Product& product) {
  return product.a.dtype == fb::DType::F32 && product.b.dtype == fb::DType::F32 &&
         product.m() * product.n() * product.k() <= kSmallProduct;
}

}  // namespace

cudaError_t multiply(const Product& product, const CudaContext& context) {
  if (is_small(product) || !cublas_supports(product)) return multiply_tiled(product, context);
  return product.epilogue.empty() ? multiply_cublas(product, context)
                                  : multiply_in_two_passes(product, context);
}

cudaError_t linear(const KernelCall& call, const CudaContext& context) {
  return multiply({.form = ProductForm::kForward,
                   .a = as_matrix(call.inputs[0]),
                   .b = as_matrix(call.inputs[1]),
                   .c = as_matrix(call.outputs[0]),
                   .bias = call.inputs[2].data},
                  context);
}

cudaError_t fused_linear(const KernelCall& call, const CudaContext& context) {
  const auto& attrs = call.attrs<fb::FusedLinearT>();
  const TensorView& state = call.inputs[4];
  const bool drops = state.present() && attrs.dropout_p > 0;
  return multiply({.form = ProductForm::kForward,
                   .a = as_matrix(call.inputs[0]),
                   .b = as_matrix(call.inputs[1]),
                   .c = as_matrix(call.outputs[0]),
                   .bias = call.inputs[2].data,
                   .epilogue = {.activation = attrs.activation,
                                .preactivation = call.outputs[1].data,
                                .residual = call.inputs[3].data,
                                .dropout = drops ? Dropout(state.as<const TrainState>(), attrs.dropout_stream,
                                                           attrs.dropout_p)
                                                 : Dropout()}},
                  context);
}

cudaError_t linear_bwd_input(const KernelCall& call, const CudaContext& context) {
  return multiply(input_gradient(call.inputs[0], call.inputs[1], call.outputs[0]), context);
}

cudaError_t linear_bwd_weight(const KernelCall& call, const CudaContext& context) {
  return multiply(weight_gradient(call.inputs[0], call.inputs[1], call.outputs[0], call.inputs[2].present()),
                  context);
}

cudaError_t bias_bwd(const KernelCall& call, const CudaContext& context) {
  return bias_gradient(call.inputs[0], call.outputs[0], call.inputs[1].present(), call.workspace, context);
}

cudaError_t fused_linear_bwd_input(const KernelCall& call, const CudaContext& context) {
  Product product = input_gradient(call.inputs[0], call.inputs[1], call.outputs[0]);
  product.epilogue = {.activation = call.attrs<fb::FusedLinearT>().activation,
                      .backward = true,
                      .preactivation = call.inputs[2].data};
  return multiply(product, context);
}

cudaError_t linear_bwd_parameters(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &dweight = call.outputs[0], &dbias = call.outputs[1];
  const BiasGradient bias = {dbias.data, call.inputs[3].present()};
  const Product product = weight_gradient(dy, call.inputs[1], dweight, call.inputs[2].present());
  if (is_small(product) && dbias.dtype == dweight.dtype && can_multiply_parameters(product, context))
    return multiply_parameters(product, bias, context);
  const cudaError_t error = multiply(product, context);
  return error == cudaSuccess ? bias_gradient(dy, dbias, bias.accumulate, call.workspace, context) : error;
}

}  // namespace moec::cuda
