// Where the heads of packed queries, keys and values lie, and how attention cuts a sequence into blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {

/// Positions of a block of queries or keys. Fixed, so that results depend on the problem alone.
constexpr int64_t kAttentionBlock = 64;
constexpr int64_t kMaxHeadDim = 256;

/// `count` positions of a sequence from `begin` on.
struct Range {
  int64_t begin;
  int64_t count;
};

/// Heads of qkv[B,S,(H+2K)d]: H of queries, K of keys, K of values; and of y[B,S,Hd].
struct AttentionLayout {
  int64_t batch, seq, heads, kv_heads, head_dim;

  AttentionLayout(const fb::AttentionT& attrs, const TensorView& qkv)
      : batch(qkv.dim(0)),
        seq(qkv.dim(1)),
        heads(attrs.heads),
        kv_heads(attrs.kv_heads),
        head_dim(attrs.head_dim) {}

  double scale() const { return 1 / std::sqrt(static_cast<double>(head_dim)); }
  int64_t kv_head_of(int64_t head) const { return head * kv_heads / heads; }
  int64_t blocks() const { return (seq + kAttentionBlock - 1) / kAttentionBlock; }
  Range positions(int64_t block) const {
    return {block * kAttentionBlock, std::min(kAttentionBlock, seq - block * kAttentionBlock)};
  }

  /// [positions, d] of one head; `qkv` and `y` are [B*S, all heads].
  Matrix query(const Matrix& qkv, int64_t b, int64_t head, Range positions) const {
    return part(qkv, b, head, positions);
  }
  Matrix key(const Matrix& qkv, int64_t b, int64_t kv_head, Range positions) const {
    return part(qkv, b, heads + kv_head, positions);
  }
  Matrix value(const Matrix& qkv, int64_t b, int64_t kv_head, Range positions) const {
    return part(qkv, b, heads + kv_heads + kv_head, positions);
  }
  Matrix output(const Matrix& y, int64_t b, int64_t head, Range positions) const {
    return part(y, b, head, positions);
  }

 private:
  Matrix part(const Matrix& all, int64_t b, int64_t head, Range positions) const {
    return all.block(b * seq + positions.begin, head * head_dim, positions.count, head_dim);
  }
};

/// Dense scratch memory as a matrix.
template <class Acc>
Matrix scratch_matrix(Acc* data, int64_t rows, int64_t cols) {
  return {data, std::is_same_v<Acc, double> ? fb::DType::F64 : fb::DType::F32, rows, cols, cols};
}

}  // namespace moec::cpu
