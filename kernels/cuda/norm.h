// The operands of RMSNorm and LayerNorm, forward.
#pragma once

#include "kernels/kernel.h"

namespace moec::cuda {

/// Absent are those that a norm does not have.
struct NormOperands {
  TensorView x, addend, weight, bias, sum, y, mean, rstd;
  float eps = 0;
};

inline NormOperands rmsnorm_operands(const KernelCall& call) {
  return {.x = call.inputs[0],
          .addend = {},
          .weight = call.inputs[1],
          .bias = {},
          .sum = {},
          .y = call.outputs[0],
          .mean = {},
          .rstd = call.outputs[1],
          .eps = call.attrs<fb::RmsNormT>().eps};
}

inline NormOperands layernorm_operands(const KernelCall& call) {
  return {.x = call.inputs[0],
          .addend = {},
          .weight = call.inputs[1],
          .bias = call.inputs[2],
          .sum = {},
          .y = call.outputs[0],
          .mean = call.outputs[1],
          .rstd = call.outputs[2],
          .eps = call.attrs<fb::LayerNormT>().eps};
}

}  // namespace moec::cuda
