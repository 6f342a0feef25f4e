// Backward of causal softmax attention. Weights are computed anew from lse, block by block. With P the
// weights, and delta the row sums of dy * y: dV = P^T dY, dS = P * (dY V^T - delta) / sqrt(d), dQ = dS K, dK
// = dS^T Q (Dao et al. 2022).
#include <algorithm>

#include "kernels/attention_part.h"
#include "kernels/cpu/attention_layout.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace moec::cpu {
namespace {

/// Operands of the kernel; lse and delta are [B,H,S].
template <class Acc>
struct Operands {
  AttentionLayout layout;
  Matrix dy, qkv, y, dqkv;
  const Acc* lse;
  double* delta;
};

/// A block of queries against a block of keys, of one head.
template <class Acc>
class BlockPair {
 public:
  explicit BlockPair(const Operands<Acc>& operands) : operands_(operands) {}

  void set_keys(int64_t batch, int64_t kv_head, int64_t block) {
    const AttentionLayout& layout = operands_.layout;
    batch_ = batch;
    key_block_ = block;
    k_ = load(layout.key(operands_.qkv, batch, kv_head, layout.positions(block)), k_scratch_);
    v_ = load(layout.value(operands_.qkv, batch, kv_head, layout.positions(block)), v_scratch_);
  }
  void set_queries(int64_t batch, int64_t head, int64_t block) {
    const AttentionLayout& layout = operands_.layout;
    batch_ = batch;
    head_ = head;
    query_block_ = block;
    q_ = load(layout.query(operands_.qkv, batch, head, layout.positions(block)), q_scratch_);
    dy_ = load(layout.output(operands_.dy, batch, head, layout.positions(block)), dy_scratch_);
  }

  /// Computes weights() and dscores() from the queries and keys that were set.
  void compute() {
    gemm(operands_.layout.scale(), q_, k_.t(), 0, weights());
    gemm(1, dy_, v_.t(), 0, dscores());
    const int64_t first =
        (batch_ * operands_.layout.heads + head_) * operands_.layout.seq + query_block_ * kAttentionBlock;
    for (int64_t row = 0; row < q_.rows; ++row) {
      const int64_t visible = query_block_ == key_block_ ? row + 1 : k_.rows;
      differentiate(row, visible, operands_.lse[first + row], static_cast<Acc>(operands_.delta[first + row]));
    }
  }

  Matrix weights() { return scratch_matrix(weights_, q_.rows, k_.rows); }
  Matrix dscores() { return scratch_matrix(dscores_, q_.rows, k_.rows); }
  const Matrix& q() const { return q_; }
  const Matrix& k() const { return k_; }
  const Matrix& dy() const { return dy_; }

 private:
  /// Turns the scores and dweights of a query into weights and dscores; 0 for keys after it.
  void differentiate(int64_t row, int64_t visible, Acc lse, Acc delta) {
    const int64_t keys = k_.rows;
    const auto scale = static_cast<Acc>(operands_.layout.scale());
    Acc *weight = weights_ + row * keys, *dscore = dscores_ + row * keys;
    std::fill(weight + visible, weight + keys, -std::numeric_limits<Acc>::infinity());
    for (int64_t j = 0; j < keys; ++j) {
      weight[j] = exp_fast(weight[j] - lse);
      dscore[j] = weight[j] * (dscore[j] - delta) * scale;
    }
  }

  const Operands<Acc>& operands_;
  int64_t batch_ = 0, head_ = 0, query_block_ = 0, key_block_ = 0;
  Matrix q_, k_, v_, dy_;
  alignas(64) Acc weights_[kAttentionBlock * kAttentionBlock];
  alignas(64) Acc dscores_[kAttentionBlock * kAttentionBlock];
  alignas(64) float q_scratch_[kAttentionBlock * kMaxHeadDim];
  alignas(64) float k_scratch_[kAttentionBlock * kMaxHeadDim];
  alignas(64) float v_scratch_[kAttentionBlock * kMaxHeadDim];
  alignas(64) float dy_scratch_[kAttentionBlock * kMaxHeadDim];
};

/// delta of the queries of one block of one head.
template <class Acc>
void sum_rows(const Operands<Acc>& operands, int64_t batch, int64_t head, int64_t block) {
  const AttentionLayout& layout = operands.layout;
  alignas(64) float dy_scratch[kAttentionBlock * kMaxHeadDim];
  alignas(64) float y_scratch[kAttentionBlock * kMaxHeadDim];
  const Range queries = layout.positions(block);
  const Matrix dy = load(layout.output(operands.dy, batch, head, queries), dy_scratch);
  const Matrix y = load(layout.output(operands.y, batch, head, queries), y_scratch);
  double* delta = operands.delta + (batch * layout.heads + head) * layout.seq + queries.begin;
  for (int64_t row = 0; row < queries.count; ++row) {
    const Acc* a = static_cast<const Acc*>(dy.data) + row * dy.stride;
    const Acc* b = static_cast<const Acc*>(y.data) + row * y.stride;
    Acc sum = 0;
#pragma omp simd simdlen(8) reduction(+ : sum)
    for (int64_t i = 0; i < layout.head_dim; ++i) sum += a[i] * b[i];
    delta[row] = sum;
  }
}

/// dK and dV of one block of keys, summed over the query heads that share it and their blocks in order. Where
/// the sequence is a single block, its dscores are all that dQ needs, and dQ is written too.
template <class Acc>
void key_value_gradient(const Operands<Acc>& operands, int64_t batch, int64_t kv_head, int64_t block) {
  const AttentionLayout& layout = operands.layout;
  alignas(64) Acc dk_scratch[kAttentionBlock * kMaxHeadDim];
  alignas(64) Acc dv_scratch[kAttentionBlock * kMaxHeadDim];
  alignas(64) Acc dq_scratch[kAttentionBlock * kMaxHeadDim];
  const Range keys = layout.positions(block);
  const Matrix dk = scratch_matrix(dk_scratch, keys.count, layout.head_dim);
  const Matrix dv = scratch_matrix(dv_scratch, keys.count, layout.head_dim);
  const int64_t group = layout.heads / layout.kv_heads;

  BlockPair<Acc> pair(operands);
  pair.set_keys(batch, kv_head, block);
  double beta = 0;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t query_block = block; query_block < layout.blocks(); ++query_block) {
      pair.set_queries(batch, head, query_block);
      pair.compute();
      gemm(1, pair.weights().t(), pair.dy(), beta, dv);
      gemm(1, pair.dscores().t(), pair.q(), beta, dk);
      beta = 1;
    }
    if (layout.blocks() == 1) {
      const Matrix dq = scratch_matrix(dq_scratch, keys.count, layout.head_dim);
      gemm(1, pair.dscores(), pair.k(), 0, dq);
      copy(dq, layout.query(operands.dqkv, batch, head, keys));
    }
  }
  copy(dk, layout.key(operands.dqkv, batch, kv_head, keys));
  copy(dv, layout.value(operands.dqkv, batch, kv_head, keys));
}

/// dQ of one block of queries of one head.
template <class Acc>
void query_gradient(const Operands<Acc>& operands, int64_t batch, int64_t head, int64_t block) {
  const AttentionLayout& layout = operands.layout;
  alignas(64) Acc dq_scratch[kAttentionBlock * kMaxHeadDim];
  const Range queries = layout.positions(block);
  const Matrix dq = scratch_matrix(dq_scratch, queries.count, layout.head_dim);
  BlockPair<Acc> pair(operands);
  pair.set_queries(batch, head, block);
  for (int64_t key_block = 0; key_block <= block; ++key_block) {
    pair.set_keys(batch, layout.kv_head_of(head), key_block);
    pair.compute();
    gemm(1, pair.dscores(), pair.k(), key_block == 0 ? 0 : 1, dq);
  }
  copy(dq, layout.query(operands.dqkv, batch, head, queries));
}

/// Calls body(batch, head, block) for all blocks of `heads` heads, with all threads, block by block: in
/// descending order if `last_first`.
template <class Body>
void for_each_block(const AttentionLayout& layout, int64_t heads, bool last_first, Body&& body) {
  const int64_t per_block = layout.batch * heads;
  parallel_for(layout.blocks() * per_block, [&](int64_t piece) {
    const int64_t block = piece / per_block, index = piece % per_block;
    body(index / heads, index % heads, last_first ? layout.blocks() - 1 - block : block);
  });
}

/// Blocks with the most work come first: the first of the keys, the last of the queries.
template <class Acc>
void differentiate_attention(const Operands<Acc>& operands) {
  const AttentionLayout& layout = operands.layout;
  for_each_block(layout, layout.heads, false,
                 [&](int64_t b, int64_t head, int64_t block) { sum_rows(operands, b, head, block); });
  for_each_block(layout, layout.kv_heads, false, [&](int64_t b, int64_t head, int64_t block) {
    key_value_gradient(operands, b, head, block);
  });
  if (layout.blocks() == 1) return;
  for_each_block(layout, layout.heads, true,
                 [&](int64_t b, int64_t head, int64_t block) { query_gradient(operands, b, head, block); });
}

}  // namespace

void attention_bwd(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &qkv = call.inputs[1], &y = call.inputs[2], &lse = call.inputs[3];
  const AttentionLayout layout(call.attrs<fb::AttentionT>(), qkv);
  const auto differentiate = [&]<class Acc>() {
    differentiate_attention(Operands<Acc>{layout, as_matrix(dy), as_matrix(qkv), as_matrix(y),
                                          as_matrix(call.outputs[0]), lse.as<Acc>(),
                                          call.workspace.as<double>()});
  };
  if (lse.dtype == fb::DType::F64) {
    differentiate.operator()<double>();
  } else {
    differentiate.operator()<float>();
  }
}

/// One step after the other: the reference for kernels that save a pass over memory.
void attention_bwd_rope(const KernelCall& call) {
  const TensorView& dqkv = call.outputs[0];
  attention_bwd(AttentionPart(call).call());
  rope_bwd({.inputs = {dqkv}, .outputs = {dqkv}, .workspace = {}, .op = call.op});
}

}  // namespace moec::cpu
