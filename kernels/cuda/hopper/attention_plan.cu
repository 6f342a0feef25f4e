#include <algorithm>

#include "kernels/cuda/hopper/attention.cuh"
#include "kernels/cuda/hopper/attention.h"
#include "kernels/cuda/hopper/map.h"
#include "kernels/cuda/launch.cuh"

namespace moec::cuda {
bool hopper_attention_supported(const KernelCall& call, const TensorView& qkv) {
  const AttentionShape shape(call.attrs<fb::AttentionT>(), qkv);
  const auto aligned = [](const TensorView& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; };
  return qkv.dtype == fb::DType::BF16 && (shape.dim == 64 || shape.dim == 128) && qkv.elements() > 0 &&
         std::ranges::all_of(call.inputs, aligned) && std::ranges::all_of(call.outputs, aligned) &&
         hopper::has_hopper_code();
}

namespace hopper {

cudaError_t map_heads(CUtensorMap& map, const AttentionShape& shape, const void* rows, int heads,
                      int box_heads, int box_positions) {
  return make_map(BoxedHeads{rows, shape.batch, shape.seq, heads, shape.dim, box_heads, box_positions}, &map);
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
