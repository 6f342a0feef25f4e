// CUDA's error codes as statuses.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <string_view>

#include "runtime/status.h"

namespace moec::runtime {

/// "cudaMalloc: out of memory (cudaErrorMemoryAllocation)". Clears the runtime's last error.
inline Status cuda_status(cudaError_t error, std::string_view call) {
  if (error == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());
  return failure(fmt::format("{}: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error)));
}

inline Status cublas_status(cublasStatus_t status, std::string_view call) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return failure(fmt::format("{}: {}", call, cublasGetStatusName(status)));
}

}  // namespace moec::runtime

/// Returns the error of a CUDA call, which the message names, from the enclosing function.
#define MOEC_RETURN_IF_CUDA_ERROR(expression) \
  MOEC_RETURN_IF_ERROR(::moec::runtime::cuda_status((expression), #expression))
