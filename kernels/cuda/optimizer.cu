// Gradient norm and AdamW over contiguous ranges of parameters.
#include "kernels/cuda/optimizer.cuh"
#include "kernels/train_step.h"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

/// What a range adds to the sum of squares.
enum class Range { kGradients, kSums };

/// partials[block] = the sum of every gridDim.x-th run of the range, or of its squares.
template <Range kRange, class T, int kWidth>
__global__ void __launch_bounds__(kThreads) sum_range_kernel(const T* x, int64_t vectors, double* partials) {
  begin_kernel();
  double sum = 0;
#pragma unroll 4
  for (int64_t i = global_thread(); i < vectors; i += int64_t{gridDim.x} * kThreads) {
    const auto v = load<kWidth>(x, i);
#pragma unroll
    for (const T element : v.value) {
      const double value = static_cast<Accumulator<T>>(element);
      sum += kRange == Range::kGradients ? value * value : value;
    }
  }
  sum = group_reduce<kThreads>(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

/// One block.
__global__ void finish_grad_norm_kernel(const double* partials, int64_t count, TrainState* state,
                                        double max_norm) {
  begin_kernel();
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = group_reduce<kThreads>(sum);
  if (threadIdx.x == 0) finish_grad_norm(*state, sum, max_norm);
}

/// Blocks of AdamW on a multiprocessor: with the vectors that their threads have in hand and read ahead,
/// enough to keep memory busy.
constexpr int kUpdatingBlocks = 3;

/// Skipped whole when the gradient is not finite. A vector is read while the one before is computed.
template <class Weights, class Grad, class Moment, int kWidth>
__global__ void __launch_bounds__(kThreads, kUpdatingBlocks)
    adamw_kernel(const Weights weights, const Ranges<Grad, Moment> ranges, int64_t vectors,
                 const fb::AdamWT attrs, const TrainState* state) {
  begin_kernel();
  using Acc = typename Weights::Value;
  __shared__ AdamWStep<Acc> shared;
  if (state->non_finite) return;
  if (threadIdx.x == 0) shared = AdamWStep<Acc>(attrs, *state);
  __syncthreads();
  const AdamWStep<Acc> step = shared;
  const MomentNoise noise(attrs, *state);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  int64_t i = global_thread();
  ParameterVector<Weights, Grad, Moment, kWidth> vector, next;
  if (i < vectors) next.load(weights, ranges, i);
#pragma unroll 2  // so that what was read ahead is not copied
  for (; i < vectors; i += stride) {
    vector = next;
    if (i + stride < vectors) next.load(weights, ranges, i + stride);
    vector.update(step, noise, i);
    vector.store(weights, ranges, i);
  }
}

/// Sums a range to some more partials behind the first *count.
template <Range kRange, class T>
cudaError_t sum_range(const TensorView& range, double* partials, int64_t* count, const CudaContext& context) {
  const int64_t blocks = std::min(kRangePartials, ceil_div(range.elements(), kPieceElements));
  double* const to = partials + *count;
  *count += blocks;
  return with_width<T>(range.elements(), {&range}, [&]<int kWidth>() {
    return launch(context, sum_range_kernel<kRange, T, kWidth>, blocks, kThreads, range.as<const T>(),
                  range.elements() / kWidth, to);
  });
}

}  // namespace

cudaError_t grad_norm(const KernelCall& call, const CudaContext& context) {
  const TensorView& squares = call.inputs[1];
  auto* partials = call.workspace.as<double>();
  int64_t count = 0;
  if (squares.present()) {
    const cudaError_t status = sum_range<Range::kSums, double>(squares, partials, &count, context);
    if (status != cudaSuccess) return status;
  }
  for (size_t i = 2; i < call.inputs.size(); ++i) {
    const TensorView& grad = call.inputs[i];
    const cudaError_t status = with_type(grad.dtype, [&]<class T>() {
      return sum_range<Range::kGradients, T>(grad, partials, &count, context);
    });
    if (status != cudaSuccess) return status;
  }
  return launch(context, finish_grad_norm_kernel, 1, kThreads, partials, count,
                call.outputs[0].as<TrainState>(), static_cast<double>(call.attrs<fb::GradNormT>().max_norm));
}

cudaError_t adamw(const KernelCall& call, const CudaContext& context) {
  const AdamWOperands operands(call);
  const int64_t most_blocks = int64_t{kUpdatingBlocks} * context.sm_count;
  return with_type(operands.param.dtype, [&]<class T>() {
    const auto weights = operands.weights<T>();
    using Weights = decltype(operands.weights<T>());
    using Acc = typename Weights::Value;
    return with_gradient_type<T>(operands.grad.dtype, [&]<class Grad>() {
      return with_moments<Acc>(operands.moment1.dtype, [&]<class Moment>() {
        return with_width<Acc>(
            operands.param.elements(),
            {&operands.param, &operands.master, &operands.grad, &operands.moment1, &operands.moment2},
            [&]<int kWidth>() {
              const int64_t vectors = operands.param.elements() / kWidth;
              return launch(context, adamw_kernel<Weights, Grad, Moment, kWidth>,
                            std::min(most_blocks, ceil_div(vectors, kThreads)), kThreads, weights,
                            operands.ranges<Grad, Moment>(), vectors, call.attrs<fb::AdamWT>(),
                            call.inputs[5].as<const TrainState>());
            });
      });
    });
  });
}

}  // namespace moec::cuda
