#include <limits>

#include "kernels/cuda/cudnn/attention_graphs.h"

namespace moec::cuda::cudnn {
namespace {

/// The tensors of one graph.
class AttentionGraph {
 public:
  AttentionGraph(const Library& library, const AttentionShape& shape, cudnnDataType_t type)
      : graph(library), shape_(shape), type_(type) {}

  Graph graph;

  /// `count` heads [S,d] in rows of `row_heads` heads.
  Tensor heads(int count, int row_heads) {
    const int64_t row = int64_t{row_heads} * shape_.dim;
    return graph.operand(type_, {shape_.batch, count, shape_.seq, shape_.dim},
                         {shape_.seq * row, shape_.dim, row, 1});
  }
  /// The same as [d,S].
  Tensor transposed_heads(int count, int row_heads) {
    const int64_t row = int64_t{row_heads} * shape_.dim;
    return graph.operand(type_, {shape_.batch, count, shape_.dim, shape_.seq},
                         {shape_.seq * row, shape_.dim, 1, row});
  }
  Tensor queries() { return heads(shape_.heads, shape_.packed_heads()); }
  Tensor outputs() { return heads(shape_.heads, shape_.heads); }
  Tensor statistics() {
    return graph.operand(CUDNN_DATA_FLOAT, statistics_dims(),
                         {int64_t{shape_.heads} * shape_.seq, shape_.seq, 1, 1});
  }

  Extents statistics_dims() const { return {shape_.batch, shape_.heads, shape_.seq, 1}; }
  Extents weights_dims() const { return {shape_.batch, shape_.heads, shape_.seq, shape_.seq}; }

  /// -infinity where a key comes after the query.
  Tensor causal(Tensor scores) {
    const Tensor seen = graph.at_least(graph.index(scores, 2), graph.index(scores, 3));
    return graph.pointwise(CUDNN_POINTWISE_BINARY_SELECT,
                           {scores, graph.scalar(-std::numeric_limits<float>::infinity()), seen});
  }
  Tensor scaled(Tensor x) {
    return graph.pointwise(CUDNN_POINTWISE_MUL, {x, graph.scalar(static_cast<float>(shape_.scale()))});
  }

  /// A product [B,H,S,d], to a gradient of keys or values: summed over the query heads of each of its heads.
  void matmul_to_group(Tensor a, Tensor b, Tensor gradient) {
    if (shape_.heads == shape_.kv_heads) {
      graph.matmul(a, b, gradient);
      return;
    }
    const Tensor all = graph.value(type_, {shape_.batch, shape_.heads, shape_.seq, shape_.dim});
    graph.reduce(CUDNN_REDUCE_TENSOR_ADD, graph.matmul(a, b, all), gradient);
  }

  /// Weights or their gradients [queries, keys] as a factor [keys, queries] of a product.
  Tensor transposed(Tensor weights) {
    const int64_t seq = shape_.seq;
    return graph.transposed(weights, {shape_.heads * seq * seq, seq * seq, 1, seq}, type_);
  }

 private:
  AttentionShape shape_;
  cudnnDataType_t type_;
};

}  // namespace

Graph forward_graph(const Library& library, const AttentionShape& shape, cudnnDataType_t type) {
  AttentionGraph a(library, shape, type);
  Graph& g = a.graph;
  const Tensor queries = a.queries(), keys = a.transposed_heads(shape.kv_heads, shape.packed_heads()),
               values = a.heads(shape.kv_heads, shape.packed_heads()), y = a.outputs(), lse = a.statistics();

  const Tensor scores = a.causal(a.scaled(g.matmul(queries, keys)));
  const Tensor max = g.value(CUDNN_DATA_FLOAT, a.statistics_dims()),
               sum = g.value(CUDNN_DATA_FLOAT, a.statistics_dims());
  g.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, max);
  const Tensor exponentials =
      g.pointwise(CUDNN_POINTWISE_EXP, {g.pointwise(CUDNN_POINTWISE_SUB, {scores, max})});
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, exponentials, sum);
  g.pointwise(CUDNN_POINTWISE_ADD, {max, g.pointwise(CUDNN_POINTWISE_LOG, {sum})}, lse);
  const Tensor weights =
      g.pointwise(CUDNN_POINTWISE_DIV, {exponentials, sum}, g.value(type, a.weights_dims()));
  g.matmul(weights, values, y);
  return std::move(g);
}

Graph backward_graph(const Library& library, const AttentionShape& shape, cudnnDataType_t type) {
  AttentionGraph a(library, shape, type);
  Graph& g = a.graph;
  const int packed = shape.packed_heads();
  const Tensor queries = a.queries(), keys = a.transposed_heads(shape.kv_heads, packed),
               values = a.transposed_heads(shape.kv_heads, packed), y = a.outputs(), dy = a.outputs(),
               lse = a.statistics(), delta = a.statistics(), dqueries = a.queries(),
               dkeys = a.heads(shape.kv_heads, packed), dvalues = a.heads(shape.kv_heads, packed);

  const Tensor sums = g.value(CUDNN_DATA_FLOAT, a.statistics_dims());
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, g.pointwise(CUDNN_POINTWISE_MUL, {dy, y}), sums);
  g.pointwise(CUDNN_POINTWISE_MUL, {sums, g.scalar(1)}, delta);

  const Tensor logarithms = g.pointwise(CUDNN_POINTWISE_SUB, {a.scaled(g.matmul(queries, keys)), lse});
  const Tensor weights = g.pointwise(CUDNN_POINTWISE_EXP, {a.causal(logarithms)});
  a.matmul_to_group(a.transposed(weights), dy, dvalues);

  const Tensor dweights = g.pointwise(CUDNN_POINTWISE_SUB, {g.matmul(dy, values), delta});
  const Tensor dscores = a.scaled(g.pointwise(CUDNN_POINTWISE_MUL, {dweights, weights}));
  a.matmul_to_group(a.transposed(dscores), queries, dkeys);
  const int64_t row = int64_t{packed} * shape.dim;
  g.matmul(dscores, g.transposed(keys, {shape.seq * row, shape.dim, row, 1}, type), dqueries);
  return std::move(g);
}

}  // namespace moec::cuda::cudnn
