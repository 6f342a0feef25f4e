// The variants of kernels/variants.def, on the CUDA device.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

/// One way to compute a kernel.
struct CudaVariant {
  std::string_view kernel;
  std::string_view name;
  /// Whether it computes the call: its types, shapes and addresses, on the current GPU, in this build.
  bool (*computes)(const KernelCall& call, const CudaContext& context);
  CudaKernel run;
};

/// Of a variant that computes whatever its kernel does.
inline bool always_computes(const KernelCall&, const CudaContext&) { return true; }

/// By families of kernels.
std::span<const CudaVariant> linear_variants();
std::span<const CudaVariant> grouped_linear_variants();
std::span<const CudaVariant> grouped_linear_bwd_weight_variants();
std::span<const CudaVariant> attention_variants();
std::span<const CudaVariant> attention_bwd_variants();

/// nullptr when the device knows no such variant.
const CudaVariant* find_variant(std::string_view kernel, std::string_view name);

/// Those that compute a call of `kernel`, in the order of variants.def.
std::vector<const CudaVariant*> variants_for(std::string_view kernel, const KernelCall& call,
                                             const CudaContext& context);

}  // namespace moec::cuda
