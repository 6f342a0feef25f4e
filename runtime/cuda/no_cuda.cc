// Stands in for the CUDA device in builds without CUDA.
#include "runtime/cuda/cuda_ceilings.h"
#include "runtime/cuda/cuda_device.h"

namespace moec::runtime {

Status cuda_available() {
  return input_error("this build has no CUDA device; configure with -DMOEC_CUDA=ON where nvcc is installed");
}

Result<std::unique_ptr<Device>> make_cuda_device(Execution) { return cuda_available().error(); }

Result<Ceilings> measure_cuda_ceilings() { return cuda_available().error(); }

}  // namespace moec::runtime
