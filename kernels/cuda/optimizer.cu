// Gradient norm and AdamW over contiguous ranges of parameters.
#include "kernels/adamw_step.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/master_weight.h"
#include "kernels/train_step.h"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

/// Elements of a gradient range that are worth a block of their own.
constexpr int64_t kPieceElements = 4096;

/// partials[block] = the sum of squares of every gridDim.x-th run of the range.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    sum_of_squares_kernel(const T* x, int64_t vectors, double* partials) {
  begin_kernel();
  double sum = 0;
#pragma unroll 4
  for (int64_t i = global_thread(); i < vectors; i += int64_t{gridDim.x} * kThreads) {
    const auto v = load<kWidth>(x, i);
#pragma unroll
    for (const T element : v.value) {
      const double value = static_cast<Accumulator<T>>(element);
      sum += value * value;
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

template <class T, class Grad>
struct AdamWRange {
  T* weight;
  uint16_t* remainder;  // null where weights are their own masters
  const Grad* grad;
  Accumulator<T>* moment1;
  Accumulator<T>* moment2;
  int64_t elements;
};

/// The f32 master that a bf16 weight and its remainder stand for, and back.
__device__ inline float join(bf16 weight, uint16_t remainder) {
  return __uint_as_float(join_master(__bfloat16_as_ushort(weight), remainder));
}
__device__ inline void split(float master, bf16& weight, uint16_t& remainder) {
  const SplitMaster halves = split_master(__float_as_uint(master));
  weight = __ushort_as_bfloat16(halves.weight);
  remainder = halves.remainder;
}

/// kMaster: weights are f32 masters kept as pairs of 16 bits. Skipped whole when the gradient is not finite.
template <class T, class Grad, bool kMaster, int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    adamw_kernel(const AdamWRange<T, Grad> range, const fb::AdamWT attrs, const TrainState* state) {
  begin_kernel();
  using Acc = Accumulator<T>;
  __shared__ AdamWStep<Acc> shared;
  if (state->non_finite) return;
  if (threadIdx.x == 0) shared = AdamWStep<Acc>(attrs, *state);
  __syncthreads();
  const AdamWStep<Acc> step = shared;
  for (int64_t i = global_thread(); i < range.elements / kWidth; i += int64_t{gridDim.x} * kThreads) {
    auto weight = load<kWidth>(range.weight, i);
    auto remainder = kMaster ? load<kWidth>(range.remainder, i) : Vector<uint16_t, kWidth>{};
    const auto grad = load<kWidth>(range.grad, i);
    auto moment1 = load<kWidth>(range.moment1, i), moment2 = load<kWidth>(range.moment2, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const auto g = static_cast<Acc>(static_cast<Accumulator<Grad>>(grad.value[j]));
      if constexpr (kMaster) {
        const float master = join(weight.value[j], remainder.value[j]);
        split(step.update(master, g, moment1.value[j], moment2.value[j]), weight.value[j],
              remainder.value[j]);
      } else {
        const auto before = static_cast<Acc>(weight.value[j]);
        weight.value[j] = to_storage<T>(step.update(before, g, moment1.value[j], moment2.value[j]));
      }
    }
    store(range.weight, i, weight);
    if constexpr (kMaster) store(range.remainder, i, remainder);
    store(range.moment1, i, moment1);
    store(range.moment2, i, moment2);
  }
}

}  // namespace

cudaError_t grad_norm(const KernelCall& call, const CudaContext& context) {
  auto* partials = call.workspace.as<double>();
  int64_t count = 0;
  for (size_t i = 1; i < call.inputs.size(); ++i) {
    const TensorView& grad = call.inputs[i];
    const int64_t blocks = std::min(kRangePartials, ceil_div(grad.elements(), kPieceElements));
    const cudaError_t status = with_type(grad.dtype, [&]<class T>() {
      return with_width<T>(grad.elements(), {&grad}, [&]<int kWidth>() {
        return launch(context, sum_of_squares_kernel<T, kWidth>, blocks, kThreads, grad.as<const T>(),
                      grad.elements() / kWidth, partials + count);
      });
    });
    if (status != cudaSuccess) return status;
    count += blocks;
  }
  return launch(context, finish_grad_norm_kernel, 1, kThreads, partials, count,
                call.outputs[0].as<TrainState>(), static_cast<double>(call.attrs<fb::GradNormT>().max_norm));
}

cudaError_t adamw(const KernelCall& call, const CudaContext& context) {
  const TensorView &param = call.outputs[0], &grad = call.inputs[1];
  const TensorView &moment1 = call.outputs[1], &moment2 = call.outputs[2];
  const TensorView remainder = call.inputs[4].present() ? call.outputs[3] : TensorView{};
  const int64_t most_blocks =
      int64_t{8} * context.sm_count;  // enough to fill the machine: a block has a start-up cost
  return with_type(param.dtype, [&]<class T>() {
    return with_gradient_type<T>(grad.dtype, [&]<class Grad>() {
      using Acc = Accumulator<T>;
      const AdamWRange<T, Grad> range = {param.as<T>(),     remainder.as<uint16_t>(), grad.as<const Grad>(),
                                         moment1.as<Acc>(), moment2.as<Acc>(),        param.elements()};
      return with_width<Acc>(
          range.elements, {&param, &remainder, &grad, &moment1, &moment2}, [&]<int kWidth>() {
            auto kernel = adamw_kernel<T, Grad, false, kWidth>;
            if constexpr (std::is_same_v<T, bf16>)
              if (range.remainder) kernel = adamw_kernel<T, Grad, true, kWidth>;
            return launch(context, kernel, std::min(most_blocks, ceil_div(range.elements / kWidth, kThreads)),
                          kThreads, range, call.attrs<fb::AdamWT>(), call.inputs[5].as<const TrainState>());
          });
    });
  });
}

}  // namespace moec::cuda
