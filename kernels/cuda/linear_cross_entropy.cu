// The cross-entropy of a linear layer's output, and its gradients, without ever holding all logits.
#include <cmath>

#include "kernels/cuda/product.h"
#include "kernels/cuda/scalar.cuh"
#include "kernels/cuda/softmax_stats.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

/// One block.
__global__ void count_targets(const int32_t* targets, int64_t rows, double* valid) {
  begin_kernel();
  int count = 0;
#pragma unroll 8
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) count += targets[row] >= 0;
  count = group_reduce<kThreads>(count);
  if (threadIdx.x == 0) *valid = count;
}

/// One block: the sum of the rows' losses over the number of targets.
__global__ void mean_loss(const double* losses, const double* valid, int64_t rows, Scalar loss) {
  begin_kernel();
  double sum = 0;
#pragma unroll 8
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) sum += losses[row];
  sum = group_reduce<kThreads>(sum);
  if (threadIdx.x == 0) loss.write(*valid == 0 ? 0 : sum / *valid);
}

struct Rows {
  void* logits;  // [rows, stride], of which `cols` are used
  const int32_t* targets;
  double* losses;
  const double* valid;
  Scalar dloss;  // without it the logits stay as they are
  int cols;
  int64_t stride;
};

/// A block per row: its loss, and its logits become dloss / valid targets * (softmax - one at the target).
/// Rows without a target have none. The second reading of the row is from the cache. Rows are whole vectors;
/// what is behind the used columns becomes zero.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) cross_entropy_rows(const Rows rows) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = blockIdx.x;
  T* x = static_cast<T*>(rows.logits) + row * rows.stride;
  const int32_t target = rows.targets[row];
  const bool differentiates = rows.dloss.data != nullptr;
  const Acc factor = differentiates ? static_cast<Acc>(rows.dloss.read() / fmax(1.0, *rows.valid)) : 0;
  const SoftmaxStats<Acc> stats = softmax_stats_of_first<kWidth, kThreads>(x, rows.cols);
  const Acc lse = stats.max + std::log(stats.sum);
  const Acc at_target = target < 0 ? Acc{0} : static_cast<Acc>(x[target]) - lse;
  if (threadIdx.x == 0) rows.losses[row] = target < 0 ? 0 : -static_cast<double>(at_target);
  if (!differentiates) return;
  __syncthreads();  // every thread has read the logit at the target

#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < (rows.cols + kWidth - 1) / kWidth; i += kThreads) {
    const auto v = load<kWidth>(x, i);
    Vector<T, kWidth> out = {};
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      if (target >= 0 && i * kWidth + j < rows.cols)
        out.value[j] = to_storage<T>(factor * exponential<T>(static_cast<Acc>(v.value[j]) - lse));
    store(x, i, out);
    if (target / kWidth == i && target >= 0) x[target] = to_storage<T>(factor * std::expm1(at_target));
  }
}

cudaError_t launch_rows(const CudaContext& context, fb::DType dtype, const Rows& rows, int64_t count) {
  return with_type(dtype, [&]<class T>() {
    constexpr int kWide = kVectorWidth<T>;
    const bool aligned = rows.stride % kWide == 0;
    return aligned ? launch(context, cross_entropy_rows<T, kWide>, count, kThreads, rows)
                   : launch(context, cross_entropy_rows<T, 1>, count, kThreads, rows);
  });
}

/// out = sums, rounded, plus the old out if `accumulate`.
template <class T>
__global__ void round_sums(const float* sums, T* out, int64_t elements, bool accumulate) {
  begin_kernel();
  const int64_t i = global_thread();
  if (i >= elements) return;
  const float old = accumulate ? static_cast<float>(out[i]) : 0;
  out[i] = to_storage<T>(old + sums[i]);
}

ProductMatrix rows_of(const TensorView& tensor, int64_t begin, int64_t count) {
  const int64_t offset = begin * tensor.cols() * dtype_size(tensor.dtype);
  return {tensor.as<std::byte>() + offset, tensor.dtype, count, tensor.cols()};
}

/// Runs steps until one fails.
class Sequence {
 public:
  template <class Step>
  Sequence& then(Step&& step) {
    if (status == cudaSuccess) status = step();
    return *this;
  }
  cudaError_t status = cudaSuccess;
};

/// The weight with rows of zeros at its end, in the workspace.
cudaError_t pad_weight(const TensorView& weight, const ProductMatrix& padded, const CudaContext& context) {
  auto* to = static_cast<std::byte*>(const_cast<void*>(padded.data));
  const int64_t more = (padded.rows - weight.rows()) * weight.cols() * dtype_size(weight.dtype);
  const cudaError_t error = cudaMemcpyAsync(to, weight.data, static_cast<size_t>(weight.bytes()),
                                            cudaMemcpyDeviceToDevice, context.stream);
  if (error != cudaSuccess) return error;
  return cudaMemsetAsync(to + weight.bytes(), 0, static_cast<size_t>(more), context.stream);
}

/// sums = logits^T x, or added to: the rows of the first classes, a multiple of 8, and those of the few
/// others.
cudaError_t add_weight_gradient(const ProductMatrix& logits, const ProductMatrix& x,
                                const ProductMatrix& sums, bool accumulate, const CudaContext& context) {
  const int64_t others = dtype_size(logits.dtype) == 2 ? sums.rows % 8 : 0, first = sums.rows - others;
  const auto of_classes = [&](int64_t begin, int64_t count) {
    Product product = {
        .form = ProductForm::kWeight, .a = logits, .b = x, .c = sums, .accumulate = accumulate};
    product.a.data = static_cast<const std::byte*>(logits.data) + begin * dtype_size(logits.dtype);
    product.a.cols = product.c.rows = count;
    product.c.data = static_cast<const std::byte*>(sums.data) + begin * sums.cols * dtype_size(sums.dtype);
    return count == 0 ? cudaSuccess : multiply(product, context);
  };
  const cudaError_t error = of_classes(0, first);
  return error == cudaSuccess ? of_classes(first, others) : error;
}

}  // namespace

cudaError_t linear_cross_entropy(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &weight = call.inputs[1], &dloss = call.inputs[3];
  const TensorView &dx = call.outputs[1], &dweight = call.outputs[2];
  const auto* targets = call.inputs[2].as<const int32_t>();
  const LogitsChunks chunks = logits_chunks(call);
  auto* workspace = call.workspace.as<std::byte>();
  auto* losses = call.workspace.as<double>();
  double* valid = losses + x.rows();
  std::byte* chunk_logits = workspace + chunks.logits_offset;
  const int64_t rows = x.rows();
  const bool accumulate = call.inputs[4].present();
  ProductMatrix all_weights = rows_of(weight, 0, weight.rows());
  const bool pads = chunks.classes != weight.rows();
  if (pads) all_weights = {workspace + chunks.weight_offset, weight.dtype, chunks.classes, weight.cols()};
  ProductMatrix sums = dweight.present() ? rows_of(dweight, 0, weight.rows()) : ProductMatrix{};
  if (chunks.sums) sums = {workspace + chunks.sums_offset, fb::DType::F32, weight.rows(), weight.cols()};

  Sequence sequence;
  sequence.then([&] { return launch(context, count_targets, 1, kThreads, targets, rows, valid); });
  if (pads) sequence.then([&] { return pad_weight(weight, all_weights, context); });
  for (int64_t begin = 0; begin < rows; begin += chunks.rows) {
    const int64_t count = std::min(chunks.rows, rows - begin);
    const ProductMatrix x_chunk = rows_of(x, begin, count);
    const ProductMatrix logits = {chunk_logits, x.dtype, count, chunks.classes, chunks.stride};
    const Rows chunk = {chunk_logits,
                        targets + begin,
                        losses + begin,
                        valid,
                        dloss.present() ? Scalar(dloss) : Scalar(),
                        static_cast<int>(weight.rows()),
                        chunks.stride};
    sequence
        .then([&] {
          return multiply({.form = ProductForm::kForward, .a = x_chunk, .b = all_weights, .c = logits},
                          context);
        })
        .then([&] { return launch_rows(context, x.dtype, chunk, count); });
    if (!dloss.present()) continue;
    const bool first_sum = begin == 0 && (chunks.sums || !accumulate);
    sequence.then([&] { return add_weight_gradient(logits, x_chunk, sums, !first_sum, context); })
        .then([&] {  // last, because it may lie over x
          return multiply(
              {.form = ProductForm::kInput, .a = logits, .b = all_weights, .c = rows_of(dx, begin, count)},
              context);
        });
  }
  if (chunks.sums)
    sequence.then([&] {
      return with_type(dweight.dtype, [&]<class T>() {
        return launch(context, round_sums<T>, ceil_div(dweight.elements(), kThreads), kThreads,
                      static_cast<const float*>(sums.data), dweight.as<T>(), dweight.elements(), accumulate);
      });
    });
  return sequence
      .then([&] {
        return launch(context, mean_loss, 1, kThreads, losses, valid, rows, Scalar(call.outputs[0]));
      })
      .status;
}

}  // namespace moec::cuda
