#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/cudnn/attention.h"
#include "kernels/cuda/hopper/attention.h"
#include "kernels/cuda/variants.h"

namespace moec::cuda {
namespace {

bool fits_short(const KernelCall& call, const CudaContext& context) {
  return fits_short_attention(call, call.inputs[1], context);
}

bool fits_hopper(const KernelCall& call, const CudaContext&) {
  return hopper_attention_supported(call, call.inputs[1]);
}

cudaError_t attention_bwd_portable(const KernelCall& call, const CudaContext& context) {
  return call.inputs[1].dtype == fb::DType::BF16 ? attention_bwd_mma(call, context)
                                                 : attention_bwd_simt(call, context);
}

}  // namespace

cudaError_t attention_bwd(const KernelCall& call, const CudaContext& context) {
  if (fits_short(call, context)) return attention_bwd_short(call, context);
  if (fits_hopper(call, context)) return attention_bwd_hopper(call, context);
  return attention_bwd_portable(call, context);
}

std::span<const CudaVariant> attention_bwd_variants() {
  constexpr AttentionPass kPass = AttentionPass::kBackward;
  static constexpr CudaVariant kVariants[] = {
      {"attention_bwd", "short", fits_short, attention_bwd_short},
      {"attention_bwd", "hopper", fits_hopper, attention_bwd_hopper},
      {"attention_bwd", "cudnn", cudnn_computes<kPass>, attention_cudnn<kPass>},
      {"attention_bwd", "portable", always_computes, attention_bwd_portable}};
  return kVariants;
}

}  // namespace moec::cuda
