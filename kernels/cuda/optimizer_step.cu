// The Apply program in one launch, where the registers of the device hold what it reads of all parameters.
#include <cooperative_groups.h>

#include "kernels/cuda/call_run.h"
#include "kernels/cuda/optimizer.cuh"
#include "kernels/schedule.h"
#include "kernels/train_step.h"

namespace moec::cuda {
namespace {

/// A thread holds this many vectors of this many elements: those that it sums in grad_norm.
constexpr int kWidth = 4, kHeld = static_cast<int>(kPieceElements / (kWidth * kThreads));

/// What the registers of a multiprocessor have room for.
constexpr int kResidentBlocks = 2;

constexpr size_t kMostGroups = 2;

/// Parameters that are updated alike: a block for each piece of them.
template <class Weights, class Moment>
struct ParameterGroup {
  Weights weights;
  Ranges<float, Moment> ranges;
  int64_t vectors;
  int first_block, blocks;
  fb::AdamWT attrs;
};

/// How the train state changes.
struct Transition {
  TrainState* state;
  double max_norm;
  fb::ScheduleT schedule;
  double* metrics;
  uint32_t growth_interval;
};

template <class Weights, class Moment>
struct OptimizerStep {
  ParameterGroup<Weights, Moment> group[kMostGroups];
  int pieces;        // of all groups
  double* partials;  // [pieces]
  Transition transition;
};

/// The sum of squares of a thread's part of a piece, in the order of grad_norm.
template <class Weights, class Moment, int kWidth>
__device__ double sum_of_squares(const ParameterVector<Weights, float, Moment, kWidth> (&held)[kHeld]) {
  double sum = 0;
#pragma unroll
  for (const auto& vector : held) {
    float elements[kWidth];
    unpack(vector.grad, elements);
#pragma unroll
    for (const double element : elements) sum += element * element;
  }
  return sum;
}

/// The sum of all partial sums, for all threads of a block, in the order of grad_norm.
__device__ double sum_partials(const double* partials, int count) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += __ldcg(partials + i);
  return group_reduce<kThreads>(sum);
}

/// All transitions of the train state in their order; every thread, one of which does it.
__device__ void finish(const Transition& transition, double sum) {
  if (threadIdx.x > 0) return;
  TrainState& state = *transition.state;
  finish_grad_norm(state, sum, transition.max_norm);
  state.lr = learning_rate(state.base_lr, transition.schedule, state.step);
  finish_step(state, transition.metrics, transition.growth_interval);
}

/// A block per piece, and one that changes the train state when all have read it. All of them are resident.
template <class Weights, class Moment>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    optimizer_step_kernel(const OptimizerStep<Weights, Moment> optimizer) {
  begin_kernel();
  const auto grid = cooperative_groups::this_grid();
  const int piece = static_cast<int>(blockIdx.x);
  if (piece == optimizer.pieces) {
    grid.sync();
    return finish(optimizer.transition, sum_partials(optimizer.partials, optimizer.pieces));
  }
  const auto& group = optimizer.group[piece >= optimizer.group[1].first_block];
  const int64_t first = int64_t{piece - group.first_block} * kThreads + threadIdx.x;
  const int64_t stride = int64_t{group.blocks} * kThreads;
  ParameterVector<Weights, float, Moment, kWidth> held[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (first + k * stride < group.vectors)
      held[k].load(group.weights, group.ranges, first + k * stride);
    else
      held[k].grad = {};
  }
  TrainState state = *optimizer.transition.state;
  const MomentNoise noise(group.attrs, state);
  const double partial = group_reduce<kThreads>(sum_of_squares(held));
  if (threadIdx.x == 0) __stcg(optimizer.partials + piece, partial);
  auto arrived = grid.barrier_arrive();

  // All but the scale of gradients is known without the norm, and computed while other blocks arrive.
  constexpr int kWriter = kWarp;  // a thread that does not watch the barrier
  __shared__ AdamWStep<float> shared;
  __shared__ bool skipped;
  if (threadIdx.x == kWriter) {
    state.lr = learning_rate(state.base_lr, optimizer.transition.schedule, state.step);
    shared = AdamWStep<float>(group.attrs, state);
  }
  grid.barrier_wait(std::move(arrived));
  const double sum = sum_partials(optimizer.partials, optimizer.pieces);
  if (threadIdx.x == kWriter) {
    finish_grad_norm(state, sum, optimizer.transition.max_norm);
    shared.grad_scale = static_cast<float>(state.grad_scale);
    skipped = state.non_finite;
  }
  __syncthreads();
  if (skipped) return;
  const AdamWStep<float> step = shared;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = first + k * stride;
    if (i >= group.vectors) return;
    held[k].update(step, noise, i);
    held[k].store(group.weights, group.ranges, i);
  }
}

/// The calls of Apply, by name.
struct StepCalls {
  const KernelCall* grad_norm = nullptr;
  const KernelCall* lr_schedule = nullptr;
  std::span<const KeyedCall> adamw;
  const KernelCall* end_step = nullptr;
  size_t count = 0;

  explicit StepCalls(std::span<const KeyedCall> sequence) {
    const auto take = [&](std::string_view key) -> const KernelCall* {
      return count < sequence.size() && sequence[count].key == key ? sequence[count++].call : nullptr;
    };
    grad_norm = take("grad_norm");
    lr_schedule = take("lr_schedule");
    const size_t first = count;
    while (take("adamw")) continue;
    adamw = sequence.subspan(first, count - first);
    end_step = take("end_step");
  }

  bool complete() const { return grad_norm && lr_schedule && !adamw.empty() && end_step; }
};

/// Whether the norm is that of the gradients of the updates, all in f32, and they fit the device.
bool fits(const StepCalls& step, const CudaContext& context) {
  const std::vector<TensorView>& ranges = step.grad_norm->inputs;
  if (ranges[1].present() || ranges.size() != 2 + step.adamw.size() || step.adamw.size() > kMostGroups)
    return false;
  const AdamWOperands first(*step.adamw[0].call);
  if (first.param.dtype == fb::DType::F64) return false;
  int64_t pieces = 0;
  for (size_t g = 0; g < step.adamw.size(); ++g) {
    const AdamWOperands group(*step.adamw[g].call);
    if (group.grad.data != ranges[2 + g].data || group.grad.dtype != fb::DType::F32 ||
        group.param.dtype != first.param.dtype || group.moment1.dtype != first.moment1.dtype ||
        !group.whole(kWidth))
      return false;
    pieces += ceil_div(group.param.elements(), kPieceElements);
  }
  return pieces < int64_t{kResidentBlocks} * context.sm_count;
}

Transition transition_of(const StepCalls& step) {
  Transition transition = {};
  transition.state = step.end_step->outputs[0].as<TrainState>();
  transition.max_norm = step.grad_norm->attrs<fb::GradNormT>().max_norm;
  if (const auto& schedule = step.lr_schedule->attrs<fb::LrScheduleT>().schedule)
    transition.schedule = *schedule;
  transition.metrics = step.end_step->outputs[1].as<double>();
  if (const auto& scale = step.end_step->attrs<fb::EndStepT>().loss_scale)
    transition.growth_interval = scale->growth_interval;
  return transition;
}

/// All blocks of a cooperative launch are resident together.
template <class... Params, class... Args>
cudaError_t launch_cooperative(const CudaContext& context, void (*kernel)(Params...), int blocks,
                               Args... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = kThreads;
  config.stream = context.stream;
  config.attrs = attributes;
  config.numAttrs = context.kernels_overlap ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <class T, class Moment>
cudaError_t run(const StepCalls& step, const CudaContext& context) {
  using Weights = decltype(AdamWOperands(*step.end_step).weights<T>());
  OptimizerStep<Weights, Moment> optimizer = {.group = {},
                                              .pieces = 0,
                                              .partials = step.grad_norm->workspace.as<double>(),
                                              .transition = transition_of(step)};
  for (size_t g = 0; g < kMostGroups; ++g) {
    ParameterGroup<Weights, Moment>& group = optimizer.group[g];
    group.first_block = optimizer.pieces;
    if (g >= step.adamw.size()) continue;
    const KernelCall& call = *step.adamw[g].call;
    const AdamWOperands operands(call);
    group.weights = operands.weights<T>();
    group.ranges = operands.ranges<float, Moment>();
    group.vectors = operands.param.elements() / kWidth;
    group.blocks = static_cast<int>(ceil_div(operands.param.elements(), kPieceElements));
    group.attrs = call.attrs<fb::AdamWT>();
    optimizer.pieces += group.blocks;
  }
  return launch_cooperative(context, optimizer_step_kernel<Weights, Moment>, optimizer.pieces + 1, optimizer);
}

cudaError_t enqueue_optimizer_step(std::span<const KeyedCall> calls, const CudaContext& context) {
  const StepCalls step(calls);
  const AdamWOperands first(*step.adamw[0].call);
  return with_type(first.param.dtype, [&]<class T>() -> cudaError_t {
    if constexpr (std::is_same_v<T, double>)
      return cudaErrorNotSupported;
    else
      return with_moments<float>(first.moment1.dtype,
                                 [&]<class Moment>() { return run<T, Moment>(step, context); });
  });
}

}  // namespace

CallRun optimizer_step_run(std::span<const KeyedCall> sequence, const CudaContext& context) {
  const StepCalls step(sequence);
  if (!step.complete() || !fits(step, context)) return {};
  return {step.count, {{enqueue_optimizer_step, operands_of(sequence.first(step.count))}}};
}

}  // namespace moec::cuda
