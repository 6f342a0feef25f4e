// Whole models against PyTorch, on any device. The golden files are made by tests/oracle.
#pragma once

#include "ops_generated.h"
#include "tests/support/make_device.h"

namespace moec::test {

/// Every model of tests/golden in precision `dtype` (f64 or f32), on activations filled with NaN. Errors are
/// relative, in the Euclidean norm of the tensor, and must be below `bound`. Prefill returns f32.
void check_logits(const MakeDevice& make_device, fb::DType dtype, double bound);
/// Loss, auxiliary losses and the gradient of every parameter over one step's micro-batches.
void check_gradients(const MakeDevice& make_device, fb::DType dtype, double bound);
/// Loss, learning rate and gradient norm of twenty AdamW steps.
void check_adamw_steps(const MakeDevice& make_device, fb::DType dtype, double bound);

}  // namespace moec::test
