// The state of a training run that lives on the device. Kernels read and write it; the host sets it before
// the first step and reads it for reports, never in between.
#pragma once

#include <cstdint>

namespace moec {

struct TrainState {
  // Set by the host.
  uint64_t seed = 0;          // key of every random stream
  int64_t window_tokens = 0;  // valid tokens in the data window
  double base_lr = 0;         // peak learning rate
  int64_t last_token = 0;     // position whose logits a prefill returns
  // Position in the run.
  int64_t step = 0;           // optimizer steps completed (skipped ones included)
  int64_t micro_batch = 0;    // micro-batches completed; counter of the random streams
  int64_t eval_batch = 0;     // evaluation batches completed since the host reset it
  int64_t skipped_steps = 0;  // steps skipped for a non-finite gradient
  // Of the step under way.
  double loss = 0;       // mean cross-entropy, summed over micro-batches / grad_accum
  double aux_loss = 0;   // mean of all auxiliary losses, likewise
  double eval_loss = 0;  // sum of cross-entropies over evaluation batches
  double grad_norm = 0;  // global norm of the unscaled gradient before clipping
  double lr = 0;         // learning rate of this step
  double loss_scale = 1;
  double grad_scale = 1;     // what the optimizer multiplies gradients with: clip factor / loss_scale
  uint32_t non_finite = 0;   // 1 when the gradient holds an infinity or a NaN
  uint32_t clean_steps = 0;  // steps since the loss scale last changed
  uint32_t reserved[8] = {};
};
static_assert(sizeof(TrainState) == 160);

/// One row of the metrics ring [kMetricsRows, kMetricsColumns] of f64; the row of step s is s % kMetricsRows.
enum MetricsColumn {
  kMetricStep,
  kMetricLoss,
  kMetricAuxLoss,
  kMetricGradNorm,
  kMetricLr,
  kMetricSkipped,
  kMetricLossScale,  // of this step; 0 where it is not dynamic
  kMetricsColumns = 8
};
constexpr int64_t kMetricsRows = 1024;

}  // namespace moec
