// Causal attention in bf16 for compute capability 9.0a: a warpgroup per 64 rows of queries, keys and values
// through TMA, both products with wgmma, weights in registers. While one warpgroup folds its scores into
// weights, the products of another run, and so do those of its own weights with values and of its queries
// with the next keys (Shah et al. 2024, FlashAttention-3).
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/attention.cuh"
#include "kernels/cuda/hopper/attention.h"

namespace moec::cuda {
namespace hopper {

/// Running maximum and sum of the scores of a thread's two rows; sums are of the thread's own columns.
struct RunningSoftmax {
  float scale;  // of scores, times log2(e)
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};

  /// Replaces scores by weights 2^((score - max) scale). The maximum lags behind the scores by up to 2^8 in
  /// the weights, so that what was summed before seldom shrinks: returns whether it does in some row of the
  /// warp.
  template <int kN>
  __device__ bool fold(float (&scores)[kN], float (&shrink)[2]) {
    constexpr float kMostLog2 = 8;
    float new_max[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      new_max[half] = max[half];
#pragma unroll
      for (int i = 0; i < kN / 4; ++i)
        new_max[half] = fmaxf(new_max[half], fmaxf(scores[4 * i + 2 * half], scores[4 * i + 2 * half + 1]));
      new_max[half] = fmaxf(new_max[half], __shfl_xor_sync(0xffffffffu, new_max[half], 1));
      new_max[half] = fmaxf(new_max[half], __shfl_xor_sync(0xffffffffu, new_max[half], 2));
    }
    const auto grows = [&](int half) { return (new_max[half] - max[half]) * scale > kMostLog2; };
    const bool shrinks = __any_sync(0xffffffffu, grows(0) || grows(1));
    if (shrinks) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        shrink[half] = exp2_fast((max[half] - new_max[half]) * scale);
        max[half] = new_max[half];
        sum[half] *= shrink[half];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = max[half] * scale;
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& score = scores[4 * i + 2 * half + j];
          score = exp2_fast(fmaf(score, scale, -shift));
          sum[half] += score;
        }
      }
    }
    return shrinks;
  }

  /// Sums of whole rows.
  __device__ void finish() {
#pragma unroll
    for (float& value : sum) {
      value += __shfl_xor_sync(0xffffffffu, value, 1);
      value += __shfl_xor_sync(0xffffffffu, value, 2);
    }
  }
};

namespace {

template <int kDim>
struct Forward {
  static constexpr int kConsumers = kDim == 64 ? 3 : 2;
  static constexpr int kRows = kConsumers * 64, kKeys = 128, kQuerySlots = 2, kSlots = kDim == 64 ? 8 : 4;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  using QueryTile = RowTile<kRows, kDim>;
  using KeyTile = RowTile<kKeys, kDim>;

  /// `ring` holds keys and values in the order of their use: K0, K1, V0, K2, V1, ...
  struct Shared {
    QueryTile queries[kQuerySlots];
    KeyTile tiles[kSlots];
    Ring<kQuerySlots> query_ring;
    Ring<kSlots> ring;
  };
};

struct ForwardOperands {
  AttentionShape shape;
  TileOrder order;
  CUtensorMap queries, keys;  // of qkv, in boxes of queries, and of keys or values
  bf16* y;
  float* lse;  // [B,H,S]
};

template <int kDim>
__device__ void produce(const ForwardOperands& operands, typename Forward<kDim>::Shared& shared) {
  using F = Forward<kDim>;
  const AttentionShape& shape = operands.shape;
  RingPlace<F::kQuerySlots> query_place;
  RingPlace<F::kSlots> place;
  operands.order.for_each_turn([&](int bundle, int rank) {
    const QueryWork work(shape, operands.order, bundle, rank, F::kRows, F::kKeys);
    Barrier& queries = shared.query_ring.fill(query_place, sizeof(typename F::QueryTile));
    shared.queries[query_place.slot].load(operands.queries, work.first_head, work.first, work.batch, queries);
    query_place.advance();
    const auto load = [&](int head, int block) {
      Barrier& full = shared.ring.fill(place, sizeof(typename F::KeyTile));
      shared.tiles[place.slot].load(operands.keys, head + work.kv_head, block * F::kKeys, work.batch, full);
      place.advance();
    };
    for (int block = 0; block < work.blocks; ++block) {
      load(shape.heads, block);
      if (block > 0) load(shape.heads + shape.kv_heads, block - 1);
    }
    load(shape.heads + shape.kv_heads, work.blocks - 1);
  });
}

template <int kDim>
__device__ void consume(const ForwardOperands& operands, typename Forward<kDim>::Shared& shared) {
  using F = Forward<kDim>;
  constexpr int kMeeting = 2 * kWarpgroup;
  const AttentionShape& shape = operands.shape;
  const int consumer = uniform_warpgroup() - 1, row = consumer * 64;
  const int turn = 1 + consumer, next_turn = 1 + (consumer + 1) % F::kConsumers;
  const int own_barrier = 1 + F::kConsumers + consumer;
  RingPlace<F::kQuerySlots> query_place;
  RingPlace<F::kSlots> place;
  if (consumer == F::kConsumers - 1) arrive_threads(next_turn, kMeeting);
  operands.order.for_each_turn([&](int bundle, int rank) {
    const QueryWork work(shape, operands.order, bundle, rank, F::kRows, F::kKeys);
    typename F::QueryTile& queries = shared.queries[query_place.slot];
    const int position[2] = {work.position(row + fragment_row()), work.position(row + fragment_row() + 8)};
    const int first_position = work.position(row);
    const int blocks = min(work.blocks, work.position(row + 63) / F::kKeys + 1);

    float scores[F::kKeys / 2], out[kDim / 2] = {}, shrink[2];
    uint32_t weights[F::kKeys / 4];
    RunningSoftmax softmax{static_cast<float>(shape.scale()) * kLog2E};
    const auto fold = [&](int block) {
      if ((block + 1) * F::kKeys > first_position) mask_later_keys(scores, position, block * F::kKeys);
      return softmax.fold(scores, shrink);
    };
    const auto take_turn = [&](auto&& start) {
      sync_threads(turn, kMeeting);
      start();
      arrive_threads(next_turn, kMeeting);
    };

    shared.query_ring.await(query_place);
    shared.ring.await(place);
    begin_products();
    multiply_rows(queries, row, shared.tiles[place.slot], scores);
    commit_products();
    wait_products<0>(scores);
    shared.ring.release(place);
    place.advance();
    fold(0);
    to_fragments(scores, weights);
    for (int block = 1; block < blocks; ++block) {
      const RingPlace<F::kSlots> keys = place;
      place.advance();
      const RingPlace<F::kSlots> values = place;
      place.advance();
      shared.ring.await(keys);
      take_turn([&] {
        pin(scores);
        pin(weights);
        pin(out);
        begin_products();
        multiply_rows(queries, row, shared.tiles[keys.slot], scores);
        commit_products();
        shared.ring.await(values);
        add_weighted(weights, shared.tiles[values.slot], out);
        commit_products();
      });
      wait_products<1>(scores);
      shared.ring.release(keys);
      const bool shrinks = fold(block);
      wait_products<0>(out);
      pin(weights);
      shared.ring.release(values);
      to_fragments(scores, weights);
      if (shrinks) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) out[i] *= shrink[i / 2 % 2];
      }
    }
    const auto skip = [&] {
      shared.ring.await(place);
      shared.ring.release(place);
      place.advance();
    };
    if (blocks < work.blocks) skip();  // keys after all of these queries
    shared.ring.await(place);
    pin(weights);
    pin(out);
    begin_products();
    add_weighted(weights, shared.tiles[place.slot], out);
    commit_products();
    wait_products<0>(out);
    shared.ring.release(place);
    place.advance();
    for (int block = blocks; block < work.blocks; ++block) {
      take_turn([] {});
      if (block > blocks) skip();
      skip();
    }

    softmax.finish();
    const auto exists = [&](int r) { return work.position(r) < shape.seq; };
    const float factor[2] = {1 / softmax.sum[0], 1 / softmax.sum[1]};
    store_rows(out, factor, queries, row, own_barrier, [&](int i) -> bf16* {
      if (!exists(row + i)) return nullptr;
      const int64_t at = int64_t{work.batch} * shape.seq + work.position(row + i);
      return operands.y + (at * shape.heads + work.head(row + i)) * kDim;
    });
    fence_shared_for_async();
    shared.query_ring.release(query_place);
    query_place.advance();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + fragment_row() + half * 8;
      if (threadIdx.x % 4 != 0 || !exists(r)) continue;
      const int64_t head = int64_t{work.batch} * shape.heads + work.head(r);
      operands.lse[head * shape.seq + position[half]] =
          (softmax.max[half] * softmax.scale + log2f(softmax.sum[half])) * kLn2;
    }
  });
  if (consumer == 0) sync_threads(turn, kMeeting);
}

template <int kDim>
__global__ void __launch_bounds__(Forward<kDim>::kThreads, 1)
    attend_hopper(const __grid_constant__ ForwardOperands operands) {
#ifdef MOEC_HOPPER_CODE
  begin_kernel();
  using F = Forward<kDim>;
  auto& shared = *static_cast<typename F::Shared*>(aligned_shared());
  if (threadIdx.x == 0) {
    shared.query_ring.init(F::kConsumers);
    shared.ring.init(F::kConsumers);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    shrink_registers<Registers<F::kConsumers>::kProducer>();
    if (threadIdx.x == 0) produce<kDim>(operands, shared);
  } else {
    grow_registers<Registers<F::kConsumers>::kConsumer>();
    consume<kDim>(operands, shared);
  }
#endif
}

template <int kDim>
cudaError_t launch_forward(const AttentionShape& shape, const KernelCall& call, const CudaContext& context) {
  using F = Forward<kDim>;
  const bf16* qkv = call.inputs[0].as<const bf16>();
  const int heads = tile_heads(shape, F::kRows), positions = F::kRows / heads;
  ForwardOperands operands{shape,
                           tile_order(shape, shape.heads, heads, positions),
                           {},
                           {},
                           call.outputs[0].as<bf16>(),
                           call.outputs[1].as<float>()};
  cudaError_t error = map_heads(operands.queries, shape, qkv, shape.packed_heads(), heads, positions);
  if (error != cudaSuccess) return error;
  error = map_heads(operands.keys, shape, qkv, shape.packed_heads(), 1, F::kKeys);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(std::min(operands.order.count(), context.sm_count)));
  return launch_grid(context, attend_hopper<kDim>, grid, F::kThreads, sizeof(typename F::Shared) + 1024,
                     operands);
}

}  // namespace
}  // namespace hopper

cudaError_t attention_hopper(const KernelCall& call, const CudaContext& context) {
  const AttentionShape shape(call.attrs<fb::AttentionT>(), call.inputs[0]);
  return shape.dim == 64 ? hopper::launch_forward<64>(shape, call, context)
                         : hopper::launch_forward<128>(shape, call, context);
}

}  // namespace moec::cuda
