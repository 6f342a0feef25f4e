// The learning rate as a function of the step.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"
#include "ops_generated.h"

namespace moec {

/// Share of the way from `begin` to `end`, 1 when there is no way.
MOEC_HOST_DEVICE inline double schedule_progress(int64_t step, int64_t begin, int64_t end) {
  if (step >= end) return 1;
  return step <= begin ? 0 : static_cast<double>(step - begin) / static_cast<double>(end - begin);
}

/// Learning rate of the step with this number, counted from 0. Warm-up is base_lr * (step + 1) /
/// warmup_steps; decay ends at min_ratio * base_lr in step total_steps and the rate stays there.
MOEC_HOST_DEVICE inline double learning_rate(double base_lr, const fb::ScheduleT& schedule, int64_t step) {
  const int64_t warmup = schedule.warmup_steps, total = schedule.total_steps;
  if (step < warmup) return base_lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  double share = 1;  // of the way between the lowest and the peak rate
  switch (schedule.kind) {
    case fb::ScheduleKind::Constant:
      break;
    case fb::ScheduleKind::Linear:
      share = 1 - schedule_progress(step, warmup, total);
      break;
    case fb::ScheduleKind::Cosine:
      share = 0.5 * (1 + std::cos(3.141592653589793 * schedule_progress(step, warmup, total)));
      break;
    case fb::ScheduleKind::Wsd: {
      const int64_t decay_begin = total - schedule.decay_steps;
      share = 1 - schedule_progress(step, decay_begin > warmup ? decay_begin : warmup, total);
      break;
    }
  }
  return base_lr * (schedule.min_ratio + (1 - static_cast<double>(schedule.min_ratio)) * share);
}

}  // namespace moec
