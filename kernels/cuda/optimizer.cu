// Gradient norm and AdamW over contiguous ranges of parameters.
#include "kernels/adamw_step.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/master_weight.h"
#include "kernels/stochastic_round.h"
#include "kernels/train_step.h"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

/// Elements of a gradient range that are worth a block of their own.
constexpr int64_t kPieceElements = 4096;

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

/// Weights that are kept as they are computed with. Like those below: loads and stores the vector number `i`.
template <class T>
struct OwnWeights {
  using Value = T;
  T* weight;

  template <int kWidth>
  __device__ Vector<T, kWidth> read(int64_t i) const {
    return load<kWidth>(weight, i);
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Vector<T, kWidth>& values) const {
    store(weight, i, values);
  }
};

/// bf16 weights and the remainders of their f32 masters.
struct SplitWeights {
  using Value = float;
  bf16* weight;
  uint16_t* remainder;

  template <int kWidth>
  __device__ Vector<float, kWidth> read(int64_t i) const {
    const auto high = load<kWidth>(weight, i);
    const auto low = load<kWidth>(remainder, i);
    Vector<float, kWidth> values;
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      values.value[j] = __uint_as_float(join_master(__bfloat16_as_ushort(high.value[j]), low.value[j]));
    return values;
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Vector<float, kWidth>& values) const {
    Vector<bf16, kWidth> high;
    Vector<uint16_t, kWidth> low;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const SplitMaster split = split_master(__float_as_uint(values.value[j]));
      high.value[j] = __ushort_as_bfloat16(split.weight);
      low.value[j] = split.remainder;
    }
    store(weight, i, high);
    store(remainder, i, low);
  }
};

/// f16 weights beside their f32 masters.
struct CopiedWeights {
  using Value = float;
  f16* weight;
  float* master;

  template <int kWidth>
  __device__ Vector<float, kWidth> read(int64_t i) const {
    return load<kWidth>(master, i);
  }
  template <int kWidth>
  __device__ void write(int64_t i, const Vector<float, kWidth>& values) const {
    Vector<f16, kWidth> rounded;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) rounded.value[j] = to_storage<f16>(values.value[j]);
    store(master, i, values);
    store(weight, i, rounded);
  }
};

/// The words of noise for the kWidth elements, 1 or 4, of vector number `i`.
template <int kWidth>
__device__ RandomBlock words_of(const MomentNoise& noise, int64_t i) {
  if constexpr (kWidth == 4) {
    return noise.block(static_cast<uint64_t>(i));
  } else {
    static_assert(kWidth == 1);
    return {{noise.block(static_cast<uint64_t>(i / 4)).word[i % 4]}};
  }
}

/// `noise` rounds bf16 moments, and only those.
template <class Moment, class Acc>
__device__ Moment to_moment(Acc value, uint32_t noise) {
  if constexpr (std::is_same_v<Moment, bf16>)
    return __ushort_as_bfloat16(round_stochastically(__float_as_uint(value), noise));
  else
    return value;
}

/// What an update reads and writes besides the weights; the ranges are as long as theirs.
template <class Grad, class Moment>
struct Ranges {
  const Grad* grad;
  Moment* moment1;
  Moment* moment2;
};

/// Skipped whole when the gradient is not finite.
template <class Weights, class Grad, class Moment, int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
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
  for (int64_t i = global_thread(); i < vectors; i += int64_t{gridDim.x} * kThreads) {
    auto weight = weights.template read<kWidth>(i);
    const auto grad = load<kWidth>(ranges.grad, i);
    auto moment1 = load<kWidth>(ranges.moment1, i), moment2 = load<kWidth>(ranges.moment2, i);
    RandomBlock words = {};
    if constexpr (!std::is_same_v<Moment, Acc>) words = words_of<kWidth>(noise, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      auto m1 = static_cast<Acc>(moment1.value[j]), m2 = static_cast<Acc>(moment2.value[j]);
      weight.value[j] = step.update(weight.value[j], static_cast<Acc>(grad.value[j]), m1, m2);
      moment1.value[j] = to_moment<Moment>(m1, words.word[j] & 0xffff);
      moment2.value[j] = to_moment<Moment>(m2, words.word[j] >> 16);
    }
    weights.template write<kWidth>(i, weight);
    store(ranges.moment1, i, moment1);
    store(ranges.moment2, i, moment2);
  }
}

/// Returns body(weights) for weights of type T, `master` being their remainders, their f32 masters, or
/// absent.
template <class T, class Body>
cudaError_t with_weights(const TensorView& weight, const TensorView& master, Body&& body) {
  if constexpr (std::is_same_v<T, bf16>)
    return body(SplitWeights{weight.as<bf16>(), master.as<uint16_t>()});
  else if constexpr (std::is_same_v<T, f16>)
    return body(CopiedWeights{weight.as<f16>(), master.as<float>()});
  else
    return body(OwnWeights<T>{weight.as<T>()});
}

/// Returns body.template operator()<Moment>() for moments of computations in Acc.
template <class Acc, class Body>
cudaError_t with_moments(fb::DType dtype, Body&& body) {
  if constexpr (std::is_same_v<Acc, float>)
    if (dtype == fb::DType::BF16) return body.template operator()<bf16>();
  return body.template operator()<Acc>();
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
  const TensorView &param = call.outputs[0], &grad = call.inputs[1];
  const TensorView &moment1 = call.outputs[1], &moment2 = call.outputs[2];
  const TensorView master = call.inputs[4].present() ? call.outputs[3] : TensorView{};
  const int64_t most_blocks =
      int64_t{8} * context.sm_count;  // enough to fill the machine: a block has a start-up cost
  return with_type(param.dtype, [&]<class T>() {
    return with_weights<T>(param, master, [&]<class Weights>(const Weights& weights) {
      return with_gradient_type<T>(grad.dtype, [&]<class Grad>() {
        return with_moments<typename Weights::Value>(moment1.dtype, [&]<class Moment>() {
          const Ranges<Grad, Moment> ranges{grad.as<const Grad>(), moment1.as<Moment>(),
                                            moment2.as<Moment>()};
          return with_width<typename Weights::Value>(
              param.elements(), {&param, &master, &grad, &moment1, &moment2}, [&]<int kWidth>() {
                const int64_t vectors = param.elements() / kWidth;
                return launch(context, adamw_kernel<Weights, Grad, Moment, kWidth>,
                              std::min(most_blocks, ceil_div(vectors, kThreads)), kThreads, weights, ranges,
                              vectors, call.attrs<fb::AdamWT>(), call.inputs[5].as<const TrainState>());
              });
        });
      });
    });
  });
}

}  // namespace moec::cuda
