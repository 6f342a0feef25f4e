#include <cudaTypedefs.h>

#include "kernels/cuda/hopper/instructions.cuh"
#include "kernels/cuda/hopper/map.h"

namespace moec::cuda::hopper {
namespace {

/// Has shared memory only in code for sm_90a.
__global__ void probe_kernel() {
#ifdef MOEC_HOPPER_CODE
  __shared__ volatile int code_for_hopper;
  code_for_hopper = 1;
#endif
}

/// The driver's function, so that the driver's library need not be linked.
cudaError_t find_encoder(PFN_cuTensorMapEncodeTiled_v12000* encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  *encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  return cudaSuccess;
}

}  // namespace

bool has_hopper_code() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess && attributes.sharedSizeBytes > 0;
}

cudaError_t make_map(const BoxedMatrices& m, CUtensorMap* map) {
  constexpr int kRunBytes = 128;
  PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
  if (const cudaError_t error = find_encoder(&encode); error != cudaSuccess) return error;
  const int64_t element = dtype_size(m.dtype);
  const CUtensorMapDataType type =
      m.dtype == fb::DType::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(m.cols), static_cast<cuuint64_t>(m.rows),
                              static_cast<cuuint64_t>(m.count)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(m.cols * element),
                                static_cast<cuuint64_t>(m.rows * m.cols * element)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(kRunBytes / element), static_cast<cuuint32_t>(m.box_rows),
                            1};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result = encode(map, type, 3, const_cast<void*>(m.data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t make_map(const BoxedHeads& h, CUtensorMap* map) {
  PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
  if (const cudaError_t error = find_encoder(&encode); error != cudaSuccess) return error;
  const auto head_bytes = static_cast<cuuint64_t>(h.dim * dtype_size(fb::DType::BF16));
  const auto heads = static_cast<cuuint64_t>(h.heads), positions = static_cast<cuuint64_t>(h.positions);
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(h.dim), heads, positions,
                              static_cast<cuuint64_t>(h.batch)};
  const cuuint64_t strides[] = {head_bytes, head_bytes * heads, head_bytes * heads * positions};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(h.box_heads),
                            static_cast<cuuint32_t>(h.box_positions), 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(h.data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace moec::cuda::hopper
