#include "runtime/cuda/progress.h"

#include <numeric>
#include <vector>

#include "runtime/cuda/cuda_check.h"

namespace moec::runtime {

Status Progress::create(uint32_t instructions) {
  std::vector<uint32_t> numbers(instructions + size_t{1});
  std::iota(numbers.begin(), numbers.end(), 0);
  const size_t bytes = numbers.size() * sizeof(uint32_t);
  void *device = nullptr, *host = nullptr;
  MOEC_RETURN_IF_CUDA_ERROR(cudaMalloc(&device, bytes));
  numbers_.reset(static_cast<uint32_t*>(device));
  MOEC_RETURN_IF_CUDA_ERROR(cudaMallocHost(&host, sizeof(uint32_t)));
  last_.reset(static_cast<uint32_t*>(host));
  *last_ = 0;
  MOEC_RETURN_IF_CUDA_ERROR(cudaMemcpy(device, numbers.data(), bytes, cudaMemcpyHostToDevice));
  return {};
}

cudaError_t Progress::mark(uint32_t number, cudaStream_t stream) {
  return cudaMemcpyAsync(last_.get(), numbers_.get() + number, sizeof(uint32_t), cudaMemcpyDeviceToHost,
                         stream);
}

}  // namespace moec::runtime
