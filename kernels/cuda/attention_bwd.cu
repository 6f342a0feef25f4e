#include "kernels/attention_part.h"
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

namespace {

template <bool (*kComputes)(const KernelCall& call, const CudaContext& context)>
bool computes_part(const KernelCall& call, const CudaContext& context) {
  return kComputes(AttentionPart(call).call(), context);
}

/// One after the other.
template <CudaKernel kAttention>
cudaError_t attention_then_rope(const KernelCall& call, const CudaContext& context) {
  const cudaError_t error = kAttention(AttentionPart(call).call(), context);
  const TensorView& dqkv = call.outputs[0];
  return error == cudaSuccess ? rope_bwd({{dqkv}, {dqkv}, {}, call.op}, context) : error;
}

/// In one pass.
cudaError_t attention_with_rope(const KernelCall& call, const CudaContext& context) {
  return attention_bwd_rope_hopper(AttentionPart(call).call(), call.attrs<fb::RopeT>(), context);
}

}  // namespace

cudaError_t attention_bwd_rope(const KernelCall& call, const CudaContext& context) {
  const AttentionPart part(call);
  const bool at_once = !fits_short(part.call(), context) && fits_hopper(part.call(), context);
  return at_once ? attention_with_rope(call, context) : attention_then_rope<attention_bwd>(call, context);
}

std::span<const CudaVariant> attention_bwd_variants() {
  constexpr AttentionPass kPass = AttentionPass::kBackward;
  static constexpr CudaVariant kVariants[] = {
      {"attention_bwd", "short", fits_short, attention_bwd_short},
      {"attention_bwd", "hopper", fits_hopper, attention_bwd_hopper},
      {"attention_bwd", "cudnn", cudnn_computes<kPass>, attention_cudnn<kPass>},
      {"attention_bwd", "portable", always_computes, attention_bwd_portable},
      {"attention_bwd_rope", "short", computes_part<fits_short>, attention_then_rope<attention_bwd_short>},
      {"attention_bwd_rope", "hopper", computes_part<fits_hopper>, attention_with_rope},
      {"attention_bwd_rope", "cudnn", computes_part<cudnn_computes<kPass>>,
       attention_then_rope<attention_cudnn<kPass>>},
      {"attention_bwd_rope", "portable", always_computes, attention_then_rope<attention_bwd_portable>}};
  return kVariants;
}

}  // namespace moec::cuda
