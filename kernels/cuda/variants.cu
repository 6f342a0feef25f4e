#include "kernels/cuda/variants.h"

namespace moec::cuda {
namespace {

/// Calls visit(variant) for those of a kernel.
template <class Visit>
void for_each_variant(std::string_view kernel, Visit&& visit) {
  for (const auto family :
       {linear_variants(), grouped_linear_variants(), grouped_linear_bwd_weight_variants(),
        attention_variants(), attention_bwd_variants()})
    for (const CudaVariant& variant : family)
      if (variant.kernel == kernel) visit(variant);
}

}  // namespace

const CudaVariant* find_variant(std::string_view kernel, std::string_view name) {
  const CudaVariant* found = nullptr;
  for_each_variant(kernel, [&](const CudaVariant& variant) {
    if (variant.name == name) found = &variant;
  });
  return found;
}

std::vector<const CudaVariant*> variants_for(std::string_view kernel, const KernelCall& call,
                                             const CudaContext& context) {
  std::vector<const CudaVariant*> found;
  for_each_variant(kernel, [&](const CudaVariant& variant) {
    if (variant.computes(call, context)) found.push_back(&variant);
  });
  return found;
}

}  // namespace moec::cuda
