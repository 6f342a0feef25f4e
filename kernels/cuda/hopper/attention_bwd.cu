#include "kernels/cuda/hopper/attention.h"
#include "kernels/cuda/hopper/attention_bwd.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {

namespace {

cudaError_t differentiate(const KernelCall& call, const hopper::Rotation& rotation,
                          const CudaContext& context) {
  const AttentionGradient<bf16> g = attention_gradient<bf16>(call);
  const AttentionShape& shape = g.shape;
  const workspace::AttentionShares shares(int64_t{shape.batch} * shape.kv_heads, shape.group(), shape.seq);
  const int64_t row_stride = workspace::attention_row_stride(shape.seq);
  const auto statistics = reinterpret_cast<hopper::TileStatistics*>(g.delta);
  const auto parts = reinterpret_cast<float4*>(statistics + shape.batch * shape.heads * row_stride / 64);
  const int64_t part_floats = 2 * workspace::AttentionShares::kKeys * shape.dim;
  const hopper::BackwardOperands operands{
      .shape = g.shape,
      .order = {},
      .shares = {.per_head = static_cast<int>(shares.per_head),
                 .share = static_cast<int>(shares.share),
                 .count = static_cast<int>(shares.count),
                 .parts = parts,
                 .arrivals = reinterpret_cast<uint32_t*>(parts + 2 * shares.count * part_floats / 4)},
      .queries = {},
      .dy = {},
      .keys = {},
      .dy_rows = g.dy,
      .y = g.y,
      .lse = g.lse,
      .statistics = statistics,
      .tiles = static_cast<int>(row_stride / 64),
      .dqkv = g.dqkv,
      .rotation = rotation};
  const cudaError_t error = hopper::differentiate_queries(operands, g, context);
  return error != cudaSuccess ? error : hopper::differentiate_keys(operands, g, context);
}

}  // namespace

cudaError_t attention_bwd_hopper(const KernelCall& call, const CudaContext& context) {
  return differentiate(call, {}, context);
}

cudaError_t attention_bwd_rope_hopper(const KernelCall& attention, const fb::RopeT& rope,
                                      const CudaContext& context) {
  return differentiate(attention, {rope, -1}, context);
}

}  // namespace moec::cuda
