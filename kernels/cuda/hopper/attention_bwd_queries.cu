#include "kernels/cuda/hopper/attention_bwd.cuh"

namespace moec::cuda::hopper {
namespace {

/// Gradient of a tile of queries: rows are queries, columns keys.
template <int kDim>
struct QuerySide {
  static constexpr int kConsumers = kDim == 64 ? 3 : 2, kRows = kConsumers * 64, kKeys = 64;
  static constexpr int kOwnSlots = kDim == 64 ? 2 : 1, kSlots = 4;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;

  struct Own {
    RowTile<kRows, kDim> queries, dy;
  };
  struct Visited {
    RowTile<kKeys, kDim> keys, values;
  };
  struct Shared {
    Own own[kOwnSlots];
    Visited visited[kSlots];
    Ring<kOwnSlots> own_ring;
    Ring<kSlots> ring;
  };

  __device__ static void produce(const BackwardOperands& operands, Shared& shared) {
    const AttentionShape& shape = operands.shape;
    RingPlace<kOwnSlots> own_place;
    RingPlace<kSlots> place;
    operands.order.for_each_turn([&](int bundle, int rank) {
      const QueryWork work(shape, operands.order, bundle, rank, kRows, kKeys);
      Own& own = shared.own[own_place.slot];
      Barrier& own_full = shared.own_ring.fill(own_place, sizeof(Own));
      own.queries.load(operands.queries, work.first_head, work.first, work.batch, own_full);
      own.dy.load(operands.dy, work.first_head, work.first, work.batch, own_full);
      own_place.advance();
      const int key_head = shape.heads + work.kv_head, value_head = key_head + shape.kv_heads;
      for (int block = 0; block < work.blocks; ++block) {
        Visited& visited = shared.visited[place.slot];
        Barrier& full = shared.ring.fill(place, sizeof(Visited));
        visited.keys.load(operands.keys, key_head, block * kKeys, work.batch, full);
        visited.values.load(operands.keys, value_head, block * kKeys, work.batch, full);
        place.advance();
      }
    });
  }

  /// Of one row of the work; the four threads that hold the row share the sum.
  __device__ static RowStatistics summarize(const BackwardOperands& operands, const QueryWork& work,
                                            int row) {
    const int position = work.position(row), head = work.head(row);
    if (position >= operands.shape.seq) return {INFINITY, 0};
    constexpr int kRun = 8;
    const int lane = static_cast<int>(threadIdx.x) % 4;
    const int64_t from = operands.output(work.batch, position, head);
    float sum = 0;
#pragma unroll
    for (int i = lane * kRun; i < kDim; i += 4 * kRun) {
      const auto a = *reinterpret_cast<const Vector<bf16, kRun>*>(operands.dy_rows + from + i);
      const auto b = *reinterpret_cast<const Vector<bf16, kRun>*>(operands.y + from + i);
#pragma unroll
      for (int j = 0; j < kRun; ++j) sum += widen(a.value[j]) * widen(b.value[j]);
    }
    const unsigned row_lanes = 0xfu << (threadIdx.x % 32 / 4 * 4);
    sum += __shfl_xor_sync(row_lanes, sum, 1);
    sum += __shfl_xor_sync(row_lanes, sum, 2);
    const int64_t index = (int64_t{work.batch} * operands.shape.heads + head) * operands.shape.seq + position;
    const RowStatistics statistics{operands.lse[index] * kLog2E, sum};
    if (lane == 0) operands.statistics_from(work.batch, head, position).set(position % 64, statistics);
    return statistics;
  }

  /// Statistics of the places behind the last position of the work's heads.
  __device__ static void pad_statistics(const BackwardOperands& operands, const QueryWork& work) {
    const int seq = operands.shape.seq, pad = operands.tiles * 64 - seq;
    for (int i = static_cast<int>(threadIdx.x) - kWarpgroup; i < pad * work.heads;
         i += kConsumers * kWarpgroup)
      operands.statistics_from(work.batch, work.first_head + i / pad, seq)
          .set((seq + i % pad) % 64, {INFINITY, 0});
  }

  __device__ static void consume(const BackwardOperands& operands, Shared& shared) {
    const AttentionShape& shape = operands.shape;
    if (blockIdx.x == 0) {
      for (int i = static_cast<int>(threadIdx.x) - kWarpgroup; i < 2 * operands.shares.count;
           i += kConsumers * kWarpgroup)
        operands.shares.arrivals[i] = 0;
    }
    const int consumer = uniform_warpgroup() - 1, row = consumer * 64;
    const auto scale = static_cast<float>(shape.scale());
    RingPlace<kOwnSlots> own_place;
    RingPlace<kSlots> place;
    operands.order.for_each_turn([&](int bundle, int rank) {
      const QueryWork work(shape, operands.order, bundle, rank, kRows, kKeys);
      Own& own = shared.own[own_place.slot];
      const int first_position = work.position(row);
      const int blocks = min(work.blocks, work.position(row + 63) / kKeys + 1);
      const int own_row = row + fragment_row();
      const int position[2] = {work.position(own_row), work.position(own_row + 8)};
      const RowStatistics statistics[2] = {summarize(operands, work, own_row),
                                           summarize(operands, work, own_row + 8)};
      if (rank == 0) pad_statistics(operands, work);

      float scores[kKeys / 2], dweights[kKeys / 2], dqueries[kDim / 2] = {};
      uint32_t dscores[kKeys / 4];
      const auto start_scores = [&](const Visited& visited) {
        pin(scores);
        pin(dweights);
        begin_products();
        multiply_rows(own.queries, row, visited.keys, scores);
        multiply_rows(own.dy, row, visited.values, dweights);
        commit_products();
      };
      const auto start_sums = [&](const Visited& visited) {
        pin(dscores);
        pin(dqueries);
        begin_products();
        add_weighted(dscores, visited.keys, dqueries);
        commit_products();
      };
      /// Turns dweights into dscores, without the factor shape.scale().
      const auto differentiate = [&](int block) {
        if ((block + 1) * kKeys > first_position) mask_later_keys(scores, position, block * kKeys);
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) {
          const RowStatistics& of_row = statistics[i / 2 % 2];
          dweights[i] =
              exp2_fast(fmaf(scores[i], scale * kLog2E, -of_row.lse)) * (dweights[i] - of_row.delta);
        }
      };

      shared.own_ring.await(own_place);
      RingPlace<kSlots> previous = place;
      place.advance();
      shared.ring.await(previous);
      start_scores(shared.visited[previous.slot]);
      wait_products<0>(scores, dweights);
      differentiate(0);
      to_fragments(dweights, dscores);
      for (int block = 1; block < blocks; ++block) {
        shared.ring.await(place);
        start_scores(shared.visited[place.slot]);
        start_sums(shared.visited[previous.slot]);
        wait_products<1>(scores, dweights);
        differentiate(block);
        wait_products<0>(dqueries);
        pin(dscores);
        shared.ring.release(previous);
        to_fragments(dweights, dscores);
        previous = place;
        place.advance();
      }
      start_sums(shared.visited[previous.slot]);
      wait_products<0>(dqueries);
      shared.ring.release(previous);
      for (int block = blocks; block < work.blocks; ++block) {  // keys after all of these queries
        shared.ring.await(place);
        shared.ring.release(place);
        place.advance();
      }

      if (operands.rotation.head_dim != 0) rotate_rows<kDim>(operands.rotation, dqueries, position);
      store_rows(dqueries, {scale, scale}, own.queries, row, 1 + consumer, [&](int i) {
        return operands.gradient(work.batch, work.position(row + i), work.head(row + i));
      });
      fence_shared_for_async();
      shared.own_ring.release(own_place);
      own_place.advance();
    });
  }
};

template <int kDim>
cudaError_t launch(BackwardOperands operands, const AttentionGradient<bf16>& g, const CudaContext& context) {
  using Side = QuerySide<kDim>;
  const int heads = tile_heads(g.shape, Side::kRows);
  operands.order = tile_order(g.shape, g.shape.heads, heads, Side::kRows / heads);
  const int blocks = std::min(operands.order.count(), context.sm_count);
  return launch_side<Side>(operands, g, blocks, heads, Side::kRows, Side::kKeys, context);
}

}  // namespace

cudaError_t differentiate_queries(const BackwardOperands& operands, const AttentionGradient<bf16>& g,
                                  const CudaContext& context) {
  return g.shape.dim == 64 ? launch<64>(operands, g, context) : launch<128>(operands, g, context);
}

}  // namespace moec::cuda::hopper
