#include "kernels/cuda/batched.h"

namespace moec::cuda {

BatchedKernel find_batched_kernel(std::string_view key) {
  if (key == "linear_bwd_weight" || key == "linear_bwd_parameters") return linear_bwd_parameters_batched;
  if (key == "norm_bwd_parameters") return norm_bwd_parameters_batched;
  return nullptr;
}

}  // namespace moec::cuda
