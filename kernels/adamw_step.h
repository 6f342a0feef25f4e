// One step of AdamW for one weight.
#pragma once

#include <cmath>

#include "kernels/host_device.h"
#include "kernels/random.h"
#include "kernels/train_state.h"
#include "ops_generated.h"

namespace moec {

/// base^exponent by repeated squaring: products alone, so that all devices get the same bits.
MOEC_HOST_DEVICE inline double integer_power(double base, int64_t exponent) {
  double power = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) power *= base;
    base *= base;
  }
  return power;
}

/// Constants of a step (Loshchilov and Hutter 2019), in the order of PyTorch's AdamW: decay, moments, bias
/// correction with t the number of updates, this one included (skipped steps are none), eps added to the
/// corrected root. Acc is the type of the arithmetic. Every rounding is spelt out - a sum with a product is
/// an fma - so that all devices get the same bits.
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
    const int64_t t = state.step + 1 - state.skipped_steps;
    keep = static_cast<Acc>(std::fma(-state.lr, adamw.weight_decay, 1.0));
    step_size = static_cast<Acc>(state.lr / (1 - integer_power(adamw.beta1, t)));
    rsqrt_bias2 = static_cast<Acc>(1 / std::sqrt(1 - integer_power(adamw.beta2, t)));
  }

  /// Updates the moments and returns the new weight.
  MOEC_HOST_DEVICE Acc update(Acc weight, Acc grad, Acc& moment1, Acc& moment2) const {
    const Acc g = grad * grad_scale;
    moment1 = std::fma(beta1, moment1, (1 - beta1) * g);
    moment2 = std::fma(beta2, moment2, (1 - beta2) * g * g);
    const Acc root = std::fma(std::sqrt(moment2), rsqrt_bias2, eps);
    return std::fma(keep, weight, -(step_size * moment1 / root));
  }
};

/// The noise that rounds bf16 moments in a step (kernels/stochastic_round.h).
struct MomentNoise {
  uint64_t seed;
  uint32_t stream, step;

  MOEC_HOST_DEVICE MomentNoise(const fb::AdamWT& adamw, const TrainState& state)
      : seed(state.seed), stream(adamw.stream), step(static_cast<uint32_t>(state.step)) {}

  /// The words of elements 4*block .. 4*block+3: the low half of each is for the first moment, the high half
  /// for the second.
  MOEC_HOST_DEVICE RandomBlock block(uint64_t block) const {
    return random_block(seed, RandomDomain::Rounding, stream, step, block);
  }
};

}  // namespace moec
