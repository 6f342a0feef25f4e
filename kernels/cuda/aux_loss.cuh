// What the router's auxiliary loss and its gradient have in common.
#pragma once

#include "kernels/cuda/scalar.cuh"

namespace moec::cuda {

/// coefficient * E / denominator of f_e: what count_e * mean probability is multiplied with.
struct AuxLossFactor {
  double coefficient = 0;
  bool per_assignment = false;
  int64_t tokens = 0;
  const int32_t* offsets = nullptr;
  int experts = 0;

  AuxLossFactor() = default;
  AuxLossFactor(const fb::AuxLossT& attrs, const TensorView& probs, const TensorView& expert_offsets)
      : coefficient(attrs.coefficient),
        per_assignment(attrs.form == fb::AuxLossForm::PerAssignment),
        tokens(probs.rows()),
        offsets(expert_offsets.as<const int32_t>()),
        experts(static_cast<int>(probs.cols())) {}

  __device__ double value() const {
    const int64_t total = per_assignment ? offsets[experts] : tokens;
    return coefficient * experts / static_cast<double>(total);
  }
  __device__ int count(int expert) const { return offsets[expert + 1] - offsets[expert]; }
};

/// The gradient of the probabilities. Their own values do not enter: the loss is linear in them, and the
/// counts have no derivative.
struct AuxLossGradient {
  Scalar dloss;
  AuxLossFactor factor;

  AuxLossGradient() = default;
  explicit AuxLossGradient(const KernelCall& call)
      : dloss(call.inputs[0]), factor(call.attrs<fb::AuxLossT>(), call.inputs[1], call.inputs[2]) {}

  /// What the count of an expert is multiplied with.
  __device__ double scale() const {
    return dloss.read() * factor.value() / static_cast<double>(factor.tokens);
  }
};

}  // namespace moec::cuda
