#include "kernels/cuda/hopper/attention.h"
#include "kernels/cuda/hopper/attention_bwd.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {

namespace {

cudaError_t differentiate(const KernelCall& call, const hopper::Rotation& rotation,
                          const CudaContext& context) {
  const AttentionGradient<bf16> g = attention_gradient<bf16>(call);
  const hopper::BackwardOperands operands{
      .shape = g.shape,
      .order = {},
      .queries = {},
      .dy = {},
      .keys = {},
      .dy_rows = g.dy,
      .y = g.y,
      .lse = g.lse,
      .statistics = reinterpret_cast<hopper::TileStatistics*>(g.delta),
      .tiles = static_cast<int>(workspace::attention_row_stride(g.shape.seq) / 64),
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
