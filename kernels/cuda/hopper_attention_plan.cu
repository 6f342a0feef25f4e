#include <cuda.h>

#include "kernels/cuda/hopper_attention.cuh"
#include "kernels/cuda/hopper_attention.h"
#include "kernels/cuda/launch.cuh"

namespace moec::cuda {
namespace {

/// Has bounds of one thread only where it was compiled without the instructions that the kernels need.
#ifdef MOEC_HOPPER_CODE
__global__ void __launch_bounds__(512) probe_hopper() {}
#else
__global__ void __launch_bounds__(1) probe_hopper() {}
#endif

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<EncodeTiled>(function)
             : nullptr;
}

EncodeTiled encode_tiled() {
  static const EncodeTiled function = find_encode_tiled();
  return function;
}

bool compiled_for_device() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, probe_hopper) == cudaSuccess && attributes.maxThreadsPerBlock > 1;
}

}  // namespace

bool hopper_attention_supported(const KernelCall& call, const TensorView& qkv) {
  const AttentionShape shape(call.attrs<fb::AttentionT>(), qkv);
  return qkv.dtype == fb::DType::BF16 && (shape.dim == 64 || shape.dim == 128) &&
         runs_aligned(qkv.as<const bf16>(), shape.dim) && compiled_for_device() && encode_tiled() != nullptr;
}

namespace hopper {

cudaError_t map_heads(CUtensorMap& map, const AttentionShape& shape, const void* rows, int heads,
                      int box_heads, int box_positions) {
  const auto dim = static_cast<cuuint64_t>(shape.dim), row = static_cast<cuuint64_t>(heads) * dim * 2;
  const cuuint64_t sizes[4] = {dim, static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(shape.seq),
                               static_cast<cuuint64_t>(shape.batch)};
  const cuuint64_t strides[3] = {dim * 2, row, row * static_cast<cuuint64_t>(shape.seq)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_heads), static_cast<cuuint32_t>(box_positions),
                             1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result =
      encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(rows), sizes, strides, box,
                     steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

TileOrder tile_order(const AttentionShape& shape, int heads, int bundle, int positions) {
  constexpr int64_t kCacheBytes = 24 << 20;
  const int bundles = heads / bundle, all = shape.batch * bundles;
  const int64_t bundle_bytes = int64_t{shape.seq} * shape.dim * 4 * shape.kv_heads / bundles;
  const int64_t section = kCacheBytes / std::max<int64_t>(bundle_bytes, 1);
  return {bundle, all, static_cast<int>(ceil_div(shape.seq, positions)),
          static_cast<int>(std::clamp<int64_t>(section, 1, all))};
}

}  // namespace hopper
}  // namespace moec::cuda
