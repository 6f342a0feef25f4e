// One step of AdamW for one weight.
#pragma once

#include <cmath>

#include "kernels/host_device.h"
#include "kernels/train_state.h"
#include "ops_generated.h"

namespace moec {

/// Constants of a step (Loshchilov and Hutter 2019), in the order of PyTorch's AdamW: decay, moments, bias
/// correction with t the number of updates, this one included (skipped steps are none), eps added to the corrected root. Acc is the type of the moments and of the
/// arithmetic.
template <class Acc>
struct AdamWStep {
  Acc beta1, beta2, eps;
  Acc keep;         // 1 - lr * weight_decay
  Acc step_size;    // lr / (1 - beta1^t)
  Acc rsqrt_bias2;  // 1 / sqrt(1 - beta2^t)
  Acc grad_scale;

  AdamWStep() = default;
  MOEC_HOST_DEVICE AdamWStep(const fb::AdamWT& adamw, const TrainState& state)
      : beta1(static_cast<Acc>(adamw.beta1)),
        beta2(static_cast<Acc>(adamw.beta2)),
        eps(static_cast<Acc>(adamw.eps)),
        grad_scale(static_cast<Acc>(state.grad_scale)) {
    const auto t = static_cast<double>(state.step + 1 - state.skipped_steps);
    keep = static_cast<Acc>(1 - state.lr * adamw.weight_decay);
    step_size = static_cast<Acc>(state.lr / (1 - std::pow(adamw.beta1, t)));
    rsqrt_bias2 = static_cast<Acc>(1 / std::sqrt(1 - std::pow(adamw.beta2, t)));
  }

  /// Updates the moments and returns the new weight.
  MOEC_HOST_DEVICE Acc update(Acc weight, Acc grad, Acc& moment1, Acc& moment2) const {
    const Acc g = grad * grad_scale;
    moment1 = beta1 * moment1 + (1 - beta1) * g;
    moment2 = beta2 * moment2 + (1 - beta2) * g * g;
    return keep * weight - step_size * moment1 / (std::sqrt(moment2) * rsqrt_bias2 + eps);
  }
};

}  // namespace moec
