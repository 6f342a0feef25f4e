#include "kernels/cuda/hopper/attention.h"
#include "kernels/cuda/hopper/attention_bwd.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {

cudaError_t attention_bwd_hopper(const KernelCall& call, const CudaContext& context) {
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
      .dqkv = g.dqkv};
  const cudaError_t error = hopper::differentiate_queries(operands, g, context);
  return error != cudaSuccess ? error : hopper::differentiate_keys(operands, g, context);
}

}  // namespace moec::cuda
