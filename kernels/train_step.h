// How a training step changes the train state: the transitions that the CPU and the CUDA kernels share.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/train_state.h"

namespace moec {

/// Takes in the global norm: `sum_of_squares` of all gradients as stored, scaled by the loss scale. An
/// infinite or NaN sum marks the step non-finite. Clips like PyTorch's clip_grad_norm_: factor max_norm /
/// (norm + 1e-6), at most 1; max_norm 0 does not clip.
MOEC_HOST_DEVICE inline void finish_grad_norm(TrainState& state, double sum_of_squares, double max_norm) {
  state.grad_norm = std::sqrt(sum_of_squares) / state.loss_scale;
  state.non_finite = sum_of_squares <= 1.7976931348623157e308 ? 0 : 1;
  const double clip = max_norm > 0 ? max_norm / (state.grad_norm + 1e-6) : 1;
  state.grad_scale = (clip < 1 ? clip : 1) / state.loss_scale;
}

/// Dynamic loss scale: half after a non-finite gradient, double after 2,000 clean steps. A scale of 1 means
/// that the run does not scale its loss, and stays.
MOEC_HOST_DEVICE inline void update_loss_scale(TrainState& state) {
  constexpr int32_t kGrowthInterval = 2000;
  if (state.loss_scale == 1) return;
  if (state.non_finite) {
    state.loss_scale *= 0.5;
    state.clean_steps = 0;
  } else if (++state.clean_steps == kGrowthInterval) {
    state.loss_scale *= 2;
    state.clean_steps = 0;
  }
}

/// Writes the step's row of the metrics ring [kMetricsRows, kMetricsColumns] and moves on to the next step.
/// kMetricSkipped counts the skipped steps up to and including this one.
MOEC_HOST_DEVICE inline void finish_step(TrainState& state, double* metrics) {
  state.skipped_steps += state.non_finite;
  double* row = metrics + state.step % kMetricsRows * kMetricsColumns;
  for (int column = 0; column < kMetricsColumns; ++column) row[column] = 0;
  row[kMetricStep] = static_cast<double>(state.step);
  row[kMetricLoss] = state.loss;
  row[kMetricAuxLoss] = state.aux_loss;
  row[kMetricGradNorm] = state.grad_norm;
  row[kMetricLr] = state.lr;
  row[kMetricSkipped] = static_cast<double>(state.skipped_steps);
  update_loss_scale(state);
  state.loss = 0;
  state.aux_loss = 0;
  state.non_finite = 0;
  ++state.step;
}

}  // namespace moec
