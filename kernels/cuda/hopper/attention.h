// Attention in bf16 on GPUs of compute capability 9.0, chosen by attention.cu and attention_bwd.cu.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// Whether the functions below can do the call whose packed queries, keys and values are `qkv`: bf16,
/// heads of 64 or 128 elements, on this device, in this build.
bool hopper_attention_supported(const KernelCall& call, const TensorView& qkv);

cudaError_t attention_hopper(const KernelCall& call, const CudaContext& context);
cudaError_t attention_bwd_hopper(const KernelCall& call, const CudaContext& context);

/// The backward of attention, and of the RoPE in front of it.
cudaError_t attention_bwd_rope_hopper(const KernelCall& attention, const fb::RopeT& rope,
                                      const CudaContext& context);

}  // namespace moec::cuda
