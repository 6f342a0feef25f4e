// Kernels that read and advance the train state.
#include "kernels/train_state.h"

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/schedule.h"
#include "kernels/train_step.h"

namespace moec::cpu {

void seed_gradient(const KernelCall& call) {
  const TrainState& state = *call.inputs[0].as<const TrainState>();
  write_scalar(call.outputs[0], state.loss_scale / call.attrs<fb::SeedGradientT>().grad_accum);
}

void record_loss(const KernelCall& call) {
  TrainState& state = *call.outputs[0].as<TrainState>();
  const fb::RecordLossT& record = call.attrs<fb::RecordLossT>();
  double cross_entropies = 0, auxiliary = 0;
  for (size_t i = 1; i < call.inputs.size(); ++i)
    (i <= record.losses ? cross_entropies : auxiliary) += read_scalar(call.inputs[i]);
  if (record.evaluate) {
    state.eval_loss += cross_entropies;
    ++state.eval_batch;
  } else {
    state.loss += cross_entropies / record.grad_accum;
    state.aux_loss += auxiliary / record.grad_accum;
    ++state.micro_batch;
  }
}

void lr_schedule(const KernelCall& call) {
  TrainState& state = *call.outputs[0].as<TrainState>();
  const auto& schedule = call.attrs<fb::LrScheduleT>().schedule;
  state.lr = learning_rate(state.base_lr, schedule ? *schedule : fb::ScheduleT{}, state.step);
}

void end_step(const KernelCall& call) {
  const auto& scale = call.attrs<fb::EndStepT>().loss_scale;
  finish_step(*call.outputs[0].as<TrainState>(), call.outputs[1].as<double>(),
              scale ? scale->growth_interval : 0);
}

}  // namespace moec::cpu
