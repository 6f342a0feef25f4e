#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/hopper/attention.h"

namespace moec::cuda {

cudaError_t attention_bwd(const KernelCall& call, const CudaContext& context) {
  if (fits_short_attention(call, call.inputs[1], context)) return attention_bwd_short(call, context);
  if (hopper_attention_supported(call, call.inputs[1])) return attention_bwd_hopper(call, context);
  return call.inputs[1].dtype == fb::DType::BF16 ? attention_bwd_mma(call, context)
                                                 : attention_bwd_simt(call, context);
}

}  // namespace moec::cuda
