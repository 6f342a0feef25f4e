// For builds without cuDNN's headers.
#include "kernels/cuda/cudnn/attention.h"

namespace moec::cuda {

struct CudnnAttention::State {};

CudnnAttention::CudnnAttention() = default;
CudnnAttention::~CudnnAttention() = default;
bool CudnnAttention::available() { return false; }
bool CudnnAttention::computes(AttentionPass, const KernelCall&) { return false; }
size_t CudnnAttention::workspace_bytes() const { return 0; }
cudaError_t CudnnAttention::run(AttentionPass, const KernelCall&, const CudaContext&) const {
  return cudaErrorNotSupported;
}

}  // namespace moec::cuda
