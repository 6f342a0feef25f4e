// Kernels of one thread that read and advance the train state.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/scalar.cuh"
#include "kernels/schedule.h"
#include "kernels/train_state.h"
#include "kernels/train_step.h"

namespace moec::cuda {
namespace {

/// Losses that one launch adds up.
constexpr size_t kMostLosses = 128;

/// The first `cross_entropies` of the `count` losses are cross-entropies, the rest are auxiliary.
struct Losses {
  Scalar loss[kMostLosses];
  int count = 0;
  int cross_entropies = 0;
};

__global__ void seed_gradient_kernel(const TrainState* state, double grad_accum, Scalar dloss) {
  begin_kernel();
  dloss.write(state->loss_scale / grad_accum);
}

__global__ void record_loss_kernel(TrainState* state, const Losses losses, double grad_accum, bool evaluate,
                                   bool ends_batch) {
  begin_kernel();
  double cross_entropies = 0, auxiliary = 0;
  for (int i = 0; i < losses.count; ++i)
    (i < losses.cross_entropies ? cross_entropies : auxiliary) += losses.loss[i].read();
  if (evaluate) {
    state->eval_loss += cross_entropies;
    state->eval_batch += ends_batch;
  } else {
    state->loss += cross_entropies / grad_accum;
    state->aux_loss += auxiliary / grad_accum;
    state->micro_batch += ends_batch;
  }
}

__global__ void lr_schedule_kernel(TrainState* state, const fb::ScheduleT schedule) {
  begin_kernel();
  state->lr = learning_rate(state->base_lr, schedule, state->step);
}

__global__ void end_step_kernel(TrainState* state, double* metrics, uint32_t growth_interval) {
  begin_kernel();
  finish_step(*state, metrics, growth_interval);
}

}  // namespace

cudaError_t seed_gradient(const KernelCall& call, const CudaContext& context) {
  return launch(context, seed_gradient_kernel, 1, 1, call.inputs[0].as<const TrainState>(),
                static_cast<double>(call.attrs<fb::SeedGradientT>().grad_accum), Scalar(call.outputs[0]));
}

cudaError_t record_loss(const KernelCall& call, const CudaContext& context) {
  const fb::RecordLossT& record = call.attrs<fb::RecordLossT>();
  const size_t total = call.inputs.size() - 1;
  for (size_t begin = 0; begin < total; begin += kMostLosses) {
    const size_t end = std::min(total, begin + kMostLosses);
    Losses losses;
    losses.count = static_cast<int>(end - begin);
    losses.cross_entropies = static_cast<int>(std::clamp<size_t>(record.losses, begin, end) - begin);
    for (size_t i = begin; i < end; ++i) losses.loss[i - begin] = Scalar(call.inputs[1 + i]);
    const cudaError_t status =
        launch(context, record_loss_kernel, 1, 1, call.outputs[0].as<TrainState>(), losses,
               static_cast<double>(record.grad_accum), record.evaluate, end == total);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

cudaError_t lr_schedule(const KernelCall& call, const CudaContext& context) {
  const auto& schedule = call.attrs<fb::LrScheduleT>().schedule;
  return launch(context, lr_schedule_kernel, 1, 1, call.outputs[0].as<TrainState>(),
                schedule ? *schedule : fb::ScheduleT{});
}

cudaError_t end_step(const KernelCall& call, const CudaContext& context) {
  const auto& scale = call.attrs<fb::EndStepT>().loss_scale;
  return launch(context, end_step_kernel, 1, 1, call.outputs[0].as<TrainState>(),
                call.outputs[1].as<double>(), scale ? scale->growth_interval : 0);
}

}  // namespace moec::cuda
