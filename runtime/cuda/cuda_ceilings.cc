#include "runtime/cuda/cuda_ceilings.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "runtime/cuda/cuda_check.h"
#include "runtime/cuda/cuda_device.h"
#include "runtime/cuda/cuda_handles.h"

namespace moec::runtime {
namespace {

constexpr int kRuns = 10;
/// Between two readings of the clock, so that the gaps between launches do not count.
constexpr int kRunsTogether = 4;

Result<CudaEvent> make_event() {
  cudaEvent_t event = nullptr;
  MOEC_RETURN_IF_CUDA_ERROR(cudaEventCreate(&event));
  return CudaEvent(event);
}

Result<DeviceMemory<std::byte>> make_memory(size_t bytes) {
  void* data = nullptr;
  MOEC_RETURN_IF_CUDA_ERROR(cudaMalloc(&data, bytes));
  return DeviceMemory<std::byte>(static_cast<std::byte*>(data));
}

/// Seconds of a run of what `enqueue` puts on the default stream, in the fastest of a few tries after one to
/// warm up.
Result<double> fastest(const std::function<Status()>& enqueue) {
  MOEC_ASSIGN_OR_RETURN(const CudaEvent start, make_event());
  MOEC_ASSIGN_OR_RETURN(const CudaEvent stop, make_event());
  MOEC_RETURN_IF_ERROR(enqueue());
  float best = 0;
  for (int i = 0; i < kRuns; ++i) {
    MOEC_RETURN_IF_CUDA_ERROR(cudaEventRecord(start.get()));
    for (int run = 0; run < kRunsTogether; ++run) MOEC_RETURN_IF_ERROR(enqueue());
    MOEC_RETURN_IF_CUDA_ERROR(cudaEventRecord(stop.get()));
    MOEC_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(stop.get()));
    float milliseconds = 0;
    MOEC_RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, start.get(), stop.get()));
    best = i == 0 ? milliseconds : std::min(best, milliseconds);
  }
  return static_cast<double>(best) * 1e-3 / kRunsTogether;
}

Result<double> copy_rate() {
  constexpr size_t kBytes = size_t{1} << 30;
  MOEC_ASSIGN_OR_RETURN(const auto from, make_memory(kBytes));
  MOEC_ASSIGN_OR_RETURN(const auto to, make_memory(kBytes));
  MOEC_ASSIGN_OR_RETURN(const double seconds, fastest([&] {
                          return cuda_status(
                              cudaMemcpyAsync(to.get(), from.get(), kBytes, cudaMemcpyDeviceToDevice),
                              "cudaMemcpyAsync");
                        }));
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

/// bf16 values of magnitude 1 to 2 and random sign, as the product is faster on data with less to switch; a
/// million of them again and again.
std::vector<uint16_t> random_bf16(size_t count) {
  constexpr uint32_t kSignAndMantissa = 0x807f, kOne = 0x3f80;
  constexpr size_t kPeriod = 1 << 20;
  std::mt19937 generator(1);
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < count; ++i)
    values[i] =
        i < kPeriod ? static_cast<uint16_t>((generator() & kSignAndMantissa) | kOne) : values[i - kPeriod];
  return values;
}

Result<double> matmul_rate() {
  constexpr int kSize = 8192;
  constexpr size_t kElements = size_t{kSize} * kSize, kBytes = kElements * sizeof(uint16_t);
  cublasHandle_t handle = nullptr;
  MOEC_RETURN_IF_ERROR(cublas_status(cublasCreate(&handle), "cublasCreate"));
  const CublasHandle cublas(handle);
  MOEC_ASSIGN_OR_RETURN(const auto a, make_memory(kBytes));
  MOEC_ASSIGN_OR_RETURN(const auto b, make_memory(kBytes));
  MOEC_ASSIGN_OR_RETURN(const auto c, make_memory(kBytes));
  const std::vector<uint16_t> values = random_bf16(kElements);
  MOEC_RETURN_IF_CUDA_ERROR(cudaMemcpy(a.get(), values.data(), kBytes, cudaMemcpyHostToDevice));
  MOEC_RETURN_IF_CUDA_ERROR(cudaMemcpy(b.get(), values.data(), kBytes, cudaMemcpyHostToDevice));
  const float one = 1, zero = 0;
  MOEC_ASSIGN_OR_RETURN(
      const double seconds, fastest([&] {
        return cublas_status(
            cublasGemmEx(cublas.get(), CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize, &one, a.get(),
                         CUDA_R_16BF, kSize, b.get(), CUDA_R_16BF, kSize, &zero, c.get(), CUDA_R_16BF, kSize,
                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
            "cublasGemmEx");
      }));
  return 2.0 * kSize * kSize * kSize / seconds;
}

}  // namespace

Result<Ceilings> measure_cuda_ceilings() {
  MOEC_RETURN_IF_ERROR(cuda_available());
  Ceilings ceilings;
  MOEC_ASSIGN_OR_RETURN(ceilings.bytes, copy_rate());
  MOEC_ASSIGN_OR_RETURN(ceilings.flops, matmul_rate());
  return ceilings;
}

}  // namespace moec::runtime
