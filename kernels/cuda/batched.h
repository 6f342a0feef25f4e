// Kernels that compute several calls in one launch.
#pragma once

#include <span>
#include <string_view>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// Most calls of a launch.
constexpr size_t kMostBatchedCalls = 8;

/// Enqueues calls of which none needs or overwrites what another one writes.
using BatchedKernel = cudaError_t (*)(std::span<const KernelCall* const> calls, const CudaContext& context);

/// What computes calls of kernels with this key together, with those of other keys that have the same one;
/// nullptr where nothing does. Results have the bits of the calls one by one.
BatchedKernel find_batched_kernel(std::string_view key);

/// Gradients of weights and biases: linear_bwd_weight, linear_bwd_parameters.
cudaError_t linear_bwd_parameters_batched(std::span<const KernelCall* const> calls,
                                          const CudaContext& context);
cudaError_t norm_bwd_parameters_batched(std::span<const KernelCall* const> calls, const CudaContext& context);

}  // namespace moec::cuda
