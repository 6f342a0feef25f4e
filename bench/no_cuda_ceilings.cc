// The ceilings of a GPU in a build without CUDA.
#include "bench/cuda_ceilings.h"
#include "runtime/cuda/cuda_device.h"

namespace moec::bench {

Result<Ceilings> measure_cuda_ceilings() {
  MOEC_RETURN_IF_ERROR(runtime::cuda_available());
  return failure("this build has no CUDA");
}

}  // namespace moec::bench
