// The gradients of a norm's parameters and the ways to compute them.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// norm_bwd_parameters for any number of rows: partial sums of pieces of the rows, then their sums.
cudaError_t norm_bwd_parameters_in_pieces(const KernelCall& call, const CudaContext& context);

}  // namespace moec::cuda
