// What the backward kernels of attention share. Weights are computed anew from lse, tile by tile. With P the
// weights, and delta the row sums of dy * y: dV = P^T dY, dS = P * (dY V^T - delta) / sqrt(d), dQ = dS K, dK
// = dS^T Q (Dao et al. 2022). A block owns a tile of keys of one key/value head, or of queries of one query
// head, and visits the tiles on the other side in a fixed order, so that every gradient is a sum of one
// block.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace moec::cuda {

template <class T>
struct AttentionGradient {
  using Acc = Accumulator<T>;

  AttentionShape shape;
  const T* dy;
  const T* qkv;
  const T* y;
  const Acc* lse;  // [B,H,S]
  Acc* delta;      // [B,H,S]
  T* dqkv;

  __device__ int key_head(int kv_head) const { return shape.heads + kv_head; }
  __device__ int value_head(int kv_head) const { return shape.heads + shape.kv_heads + kv_head; }
  /// A head of qkv, dqkv, dy or y.
  __device__ auto packed(int batch, int head) const {
    return read_head(shape, qkv, shape.packed_heads(), batch, head);
  }
  __device__ auto dpacked(int batch, int head) const {
    return write_head(shape, dqkv, shape.packed_heads(), batch, head);
  }
  __device__ auto output(const T* rows, int batch, int head) const {
    return read_head(shape, rows, shape.heads, batch, head);
  }
  /// Index in lse and delta of the first position of a head.
  __device__ int64_t statistics(int batch, int head) const {
    return (int64_t{batch} * shape.heads + head) * shape.seq;
  }
};

/// The tile that a block owns.
struct OwnedTile {
  int batch;
  int head;  // key/value head of keys, query head of queries
  int first;
};

/// Calls visit(query head, first position) for the tiles of kOther positions on the other side that see, or
/// are seen by, some of kOwn positions.
template <bool kOwnsKeys, int kOwn, int kOther, class Visit>
__device__ void for_each_other_tile(const AttentionShape& shape, const OwnedTile& own, Visit&& visit) {
  if constexpr (kOwnsKeys) {
    for (int head = own.head * shape.group(); head < (own.head + 1) * shape.group(); ++head) {
      for (int first = own.first / kOther * kOther; first < shape.seq; first += kOther) visit(head, first);
    }
  } else {
    const int last = min(own.first + kOwn, shape.seq) - 1;
    for (int first = 0; first <= last; first += kOther) visit(own.head, first);
  }
}

/// Backward of f32, f64 and f16 attention; needs no delta.
cudaError_t attention_bwd_simt(const KernelCall& call, const CudaContext& context);

/// Backward of bf16 attention on the tensor cores; delta is in the workspace.
cudaError_t attention_bwd_mma(const KernelCall& call, const CudaContext& context);

template <class T>
AttentionGradient<T> attention_gradient(const KernelCall& call) {
  using Acc = Accumulator<T>;
  return {AttentionShape(call.attrs<fb::AttentionT>(), call.inputs[1]),
          call.inputs[0].as<const T>(),
          call.inputs[1].as<const T>(),
          call.inputs[2].as<const T>(),
          call.inputs[3].as<const Acc>(),
          call.workspace.as<Acc>(),
          call.outputs[0].as<T>()};
}

}  // namespace moec::cuda
