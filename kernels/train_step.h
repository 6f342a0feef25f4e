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

/// Dynamic loss scale (Micikevicius et al. 2018): half after a non-finite gradient, but never 0 as an f32;
/// twice after `growth_interval` clean steps.
MOEC_HOST_DEVICE inline void update_loss_scale(TrainState& state, uint32_t growth_interval) {
  constexpr double kSmallest = 1.1754943508222875e-38;
  if (state.non_finite) {
    state.loss_scale = state.loss_scale > 2 * kSmallest ? state.loss_scale * 0.5 : kSmallest;
    state.clean_steps = 0;
  } else if (++state.clean_steps >= growth_interval) {
    state.loss_scale *= 2;
    state.clean_steps = 0;
  }
}

/// Writes the step's row of the metrics ring [kMetricsRows, kMetricsColumns] and moves on to the next step.
/// kMetricSkipped counts the skipped steps up to and including this one. growth_interval 0: the loss is not
/// scaled, or by a scale that stays.
MOEC_HOST_DEVICE inline void finish_step(TrainState& state, double* metrics, uint32_t growth_interval) {
  state.skipped_steps += state.non_finite;
  double* row = metrics + state.step % kMetricsRows * kMetricsColumns;
  for (int column = 0; column < kMetricsColumns; ++column) row[column] = 0;
  row[kMetricStep] = static_cast<double>(state.step);
  row[kMetricLoss] = state.loss;
  row[kMetricAuxLoss] = state.aux_loss;
  row[kMetricGradNorm] = state.grad_norm;
  row[kMetricLr] = state.lr;
  row[kMetricSkipped] = static_cast<double>(state.skipped_steps);
  if (growth_interval > 0) {
    row[kMetricLossScale] = state.loss_scale;
    update_loss_scale(state, growth_interval);
  }
  state.loss = 0;
  state.aux_loss = 0;
  state.non_finite = 0;
  ++state.step;
}

}  // namespace moec
