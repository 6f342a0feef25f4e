// Causal softmax attention in blocks of queries and keys, so that no S x S matrix is ever stored: forward
// with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022). See attention_bwd.cc for the
// backward.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_layout.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace moec::cpu {
namespace {

/// Of one block of queries, what is known after some blocks of keys.
template <class Acc>
struct Running {
  alignas(64) Acc scores[kAttentionBlock * kAttentionBlock];  // then exp(scores - max)
  alignas(64) Acc out[kAttentionBlock * kMaxHeadDim];         // sum of exp(score - max) * value
  Acc max[kAttentionBlock];
  Acc sum[kAttentionBlock];  // of exp(score - max)
};

/// Replaces the scores of a query by exp(score - max) and brings its running values to the new maximum. Only
/// the first `visible` of the scores count, the others become 0. Eight partial results measure fastest in the
/// reductions: more cost more to join than they save.
template <class Acc>
void fold_scores(Running<Acc>& running, int64_t row, int64_t visible, int64_t keys, int64_t head_dim) {
  Acc* score = running.scores + row * keys;
  std::fill(score + visible, score + keys, -std::numeric_limits<Acc>::infinity());
  Acc max = running.max[row];
#pragma omp simd simdlen(8) reduction(max : max)
  for (int64_t j = 0; j < keys; ++j) max = score[j] > max ? score[j] : max;
  for (int64_t j = 0; j < keys; ++j) score[j] = exp_fast(score[j] - max);
  Acc sum = 0;
#pragma omp simd simdlen(8) reduction(+ : sum)
  for (int64_t j = 0; j < keys; ++j) sum += score[j];
  const Acc shrink = exp_fast(running.max[row] - max);
  Acc* out = running.out + row * head_dim;
  for (int64_t i = 0; i < head_dim; ++i) out[i] *= shrink;
  running.sum[row] = running.sum[row] * shrink + sum;
  running.max[row] = max;
}

/// y[n,d] and lse[n] of the queries of one block.
template <class Acc>
void attend(const AttentionLayout& layout, int64_t batch, int64_t head, int64_t block, const Matrix& qkv,
            const Matrix& y, Acc* lse) {
  alignas(64) float q_scratch[kAttentionBlock * kMaxHeadDim];
  alignas(64) float kv_scratch[kAttentionBlock * kMaxHeadDim];
  Running<Acc> running;
  const Range queries = layout.positions(block);
  const int64_t dim = layout.head_dim, kv_head = layout.kv_head_of(head);
  std::fill_n(running.out, queries.count * dim, Acc{0});
  std::fill_n(running.max, queries.count, -std::numeric_limits<Acc>::infinity());
  std::fill_n(running.sum, queries.count, Acc{0});

  const Matrix q = load(layout.query(qkv, batch, head, queries), q_scratch);
  const Matrix out = scratch_matrix(running.out, queries.count, dim);
  for (int64_t key_block = 0; key_block <= block; ++key_block) {
    const Range keys = layout.positions(key_block);
    const Matrix weights = scratch_matrix(running.scores, queries.count, keys.count);
    gemm(layout.scale(), q, load(layout.key(qkv, batch, kv_head, keys), kv_scratch).t(), 0, weights);
    for (int64_t row = 0; row < queries.count; ++row) {
      fold_scores(running, row, key_block == block ? row + 1 : keys.count, keys.count, dim);
    }
    gemm(1, weights, load(layout.value(qkv, batch, kv_head, keys), kv_scratch), 1, out);
  }

  for (int64_t row = 0; row < queries.count; ++row) {
    const Acc factor = 1 / running.sum[row];
    for (int64_t i = 0; i < dim; ++i) running.out[row * dim + i] *= factor;
    lse[row] = running.max[row] + std::log(running.sum[row]);
  }
  copy(out, layout.output(y, batch, head, queries));
}

}  // namespace

/// One piece of work is a block of queries of one head; those with the most keys come first.
void attention(const KernelCall& call) {
  const AttentionLayout layout(call.attrs<fb::AttentionT>(), call.inputs[0]);
  const Matrix qkv = as_matrix(call.inputs[0]), y = as_matrix(call.outputs[0]);
  const TensorView& lse = call.outputs[1];
  const int64_t heads = layout.batch * layout.heads;
  const auto attend_all = [&]<class Acc>() {
    parallel_for(layout.blocks() * heads, [&](int64_t piece) {
      const int64_t block = layout.blocks() - 1 - piece / heads, head = piece % heads;
      attend(layout, head / layout.heads, head % layout.heads, block, qkv, y,
             lse.as<Acc>() + head * layout.seq + block * kAttentionBlock);
    });
  };
  if (lse.dtype == fb::DType::F64) {
    attend_all.operator()<double>();
  } else {
    attend_all.operator()<float>();
  }
}

}  // namespace moec::cpu
