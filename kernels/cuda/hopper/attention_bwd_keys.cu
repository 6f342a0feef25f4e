#include "kernels/cuda/hopper/attention_bwd.cuh"

namespace moec::cuda::hopper {
namespace {

/// Gradients of a tile of keys and values: rows are keys, columns queries.
template <int kDim>
struct KeySide {
  static constexpr int kConsumers = 2, kRows = kConsumers * 64, kQueries = 64;
  static constexpr int kOwnSlots = kDim == 64 ? 2 : 1, kSlots = kDim == 64 ? 6 : 4;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;

  struct Own {
    RowTile<kRows, kDim> keys, values;
  };
  using OwnFactor = RowFactor<kRows, kDim, kDim == 64>;  // a warpgroup's rows of one of them
  struct Visited {
    RowTile<kQueries, kDim> queries, dy;
    RowStatistics statistics[kQueries];
  };
  struct Shared {
    Own own[kOwnSlots];
    Visited visited[kSlots];
    Ring<kOwnSlots> own_ring;
    Ring<kSlots> ring;
  };

  /// What a block does: visits of tiles of queries, those of one query head of the group after those of the
  /// other, each from the first key's position on. The blocks of a cluster share the visits of a tile of
  /// keys.
  struct Work {
    int batch, kv_head, first_key, tiles;  // tiles to visit of a query head
    int begin, end;                        // visits

    __device__ Work(const BackwardOperands& operands, int head, int rank) {
      const AttentionShape& shape = operands.shape;
      batch = head / shape.kv_heads;
      kv_head = head % shape.kv_heads;
      first_key = rank * kRows;
      tiles = (shape.seq - first_key + kQueries - 1) / kQueries;
      const int visits = tiles * shape.group(), part = static_cast<int>(cluster_rank());
      begin = static_cast<int>(int64_t{visits} * part / operands.order.splits);
      end = static_cast<int>(int64_t{visits} * (part + 1) / operands.order.splits);
    }
  };

  __device__ static void produce(const BackwardOperands& operands, Shared& shared) {
    const AttentionShape& shape = operands.shape;
    RingPlace<kOwnSlots> own_place;
    RingPlace<kSlots> place;
    operands.order.for_each_turn([&](int head, int rank) {
      const Work work(operands, head, rank);
      Own& own = shared.own[own_place.slot];
      Barrier& own_full = shared.own_ring.fill(own_place, sizeof(Own));
      const int key_head = shape.heads + work.kv_head, value_head = key_head + shape.kv_heads;
      own.keys.load(operands.keys, key_head, work.first_key, work.batch, own_full);
      own.values.load(operands.keys, value_head, work.first_key, work.batch, own_full);
      own_place.advance();
      for (int visit = work.begin; visit < work.end; ++visit) {
        const int query_head = work.kv_head * shape.group() + visit / work.tiles;
        const int first = work.first_key + visit % work.tiles * kQueries;
        Visited& visited = shared.visited[place.slot];
        constexpr int kStatisticsBytes = sizeof(RowStatistics) * kQueries;
        Barrier& full = shared.ring.fill(place, 2 * sizeof(RowTile<kQueries, kDim>) + kStatisticsBytes);
        visited.queries.load(operands.queries, query_head, first, work.batch, full);
        visited.dy.load(operands.dy, query_head, first, work.batch, full);
        load_bytes(operands.row_statistics(work.batch, query_head) + first, kStatisticsBytes, full,
                   visited.statistics);
        place.advance();
      }
    });
  }

  /// What a thread holds of 64 keys. Scores become weights, dweights dscores, and these factors of the sums.
  struct Sums {
    float scores[kQueries / 2], dweights[kQueries / 2], dkeys[kDim / 2] = {}, dvalues[kDim / 2] = {};
    uint32_t weight_factors[kQueries / 4], dscore_factors[kQueries / 4];

    __device__ __forceinline__ void start_scores(const OwnFactor& keys, const OwnFactor& values,
                                                 const Visited& visited) {
      pin(scores);
      pin(dweights);
      begin_products();
      keys.multiply_rows(visited.queries, scores);
      commit_products();
      values.multiply_rows(visited.dy, dweights);
      commit_products();
    }
    /// Keys do not see queries before them: the tile's first query has the number `offset` from the first
    /// key.
    __device__ __forceinline__ void weigh(const RowStatistics* statistics, float scale, int offset) {
      if (offset < 64) {
#pragma unroll
        for (int i = 0; i < kQueries / 2; ++i) {
          if (fragment_row() + i / 2 % 2 * 8 > offset + i / 4 * 8 + fragment_col() + i % 2)
            scores[i] = -INFINITY;
        }
      }
#pragma unroll
      for (int i = 0; i < kQueries / 2; ++i) {
        const float lse = statistics[i / 4 * 8 + fragment_col() + i % 2].lse;
        scores[i] = exp2_fast(fmaf(scores[i], scale, -lse));
      }
      to_fragments(scores, weight_factors);
    }
    /// dscores are without the factor shape.scale().
    __device__ __forceinline__ void differentiate(const RowStatistics* statistics) {
#pragma unroll
      for (int i = 0; i < kQueries / 2; ++i) {
        const float delta = statistics[i / 4 * 8 + fragment_col() + i % 2].delta;
        dweights[i] = scores[i] * (dweights[i] - delta);
      }
      to_fragments(dweights, dscore_factors);
    }
    __device__ __forceinline__ void start_dvalues(const Visited& visited) {
      pin(weight_factors);
      pin(dvalues);
      begin_products();
      add_weighted(weight_factors, visited.dy, dvalues);
      commit_products();
    }
    __device__ __forceinline__ void start_dkeys(const Visited& visited) {
      pin(dscore_factors);
      pin(dkeys);
      begin_products();
      add_weighted(dscore_factors, visited.queries, dkeys);
      commit_products();
    }
    /// Waits for both gradients, but not for the kLeft groups of products started behind them.
    template <int kLeft>
    __device__ __forceinline__ void finish_gradients() {
      wait_products<kLeft>(dkeys, dvalues);
      pin(weight_factors);
      pin(dscore_factors);
    }
  };

  __device__ static void consume(const BackwardOperands& operands, Shared& shared) {
    const AttentionShape& shape = operands.shape;
    const int consumer = uniform_warpgroup() - 1, row = consumer * 64;
    const auto scale = static_cast<float>(shape.scale());
    RingPlace<kOwnSlots> own_place;
    RingPlace<kSlots> place;
    operands.order.for_each_turn([&](int head, int rank) {
      const Work work(operands, head, rank);
      Own& own = shared.own[own_place.slot];
      Sums sums;
      shared.own_ring.await(own_place);
      OwnFactor keys(own.keys, row), values(own.values, row);

      RingPlace<kSlots> previous;
      bool summing = false;  // the products of the previous visit with its tiles
      int tile = work.begin % work.tiles;
      for (int visit = work.begin; visit < work.end; ++visit) {
        const int offset = tile * kQueries - row;
        if (++tile == work.tiles) tile = 0;
        const Visited& visited = shared.visited[place.slot];
        keys.renew();
        values.renew();
        shared.ring.await(place);
        if (offset < 0) {  // queries before all of these keys
          shared.ring.release(place);
          place.advance();
          continue;
        }
        sums.start_scores(keys, values, visited);
        sums.template finish_gradients<2>();
        if (summing) shared.ring.release(previous);
        wait_products<1>(sums.scores);
        sums.weigh(visited.statistics, scale * kLog2E, offset);
        sums.start_dvalues(visited);
        wait_products<1>(sums.dweights);
        sums.differentiate(visited.statistics);
        sums.start_dkeys(visited);
        summing = true;
        previous = place;
        place.advance();
      }
      sums.template finish_gradients<0>();
      if (summing) shared.ring.release(previous);

      if (operands.order.splits > 1) {
        add_cluster(sums, shared, operands.order.splits);
        if (cluster_rank() > 0) return;
      }
      const int first_key = work.first_key + row, key_head = shape.heads + work.kv_head;
      store_rows(sums.dkeys, {scale, scale}, own.keys, row, 1 + consumer,
                 [&](int i) { return operands.gradient(work.batch, first_key + i, key_head); });
      store_rows(sums.dvalues, {1, 1}, own.values, row, 1 + consumer, [&](int i) {
        return operands.gradient(work.batch, first_key + i, key_head + shape.kv_heads);
      });
      fence_shared_for_async();
      shared.own_ring.release(own_place);
      own_place.advance();
    });
  }

  /// Adds the sums of the blocks of the cluster, in their order, in the first one, by way of the memory of
  /// the visited tiles: the blocks of a cluster have one turn, so that nothing is copied there any more.
  __device__ static void add_cluster(Sums& sums, Shared& shared, int blocks) {
    constexpr int kQuads = kDim / 8, kConsumerThreads = kConsumers * kWarpgroup;  // of one gradient
    static_assert(sizeof(shared.visited) >= 2 * kQuads * kConsumerThreads * sizeof(float4));
    float4* const part = reinterpret_cast<float4*>(shared.visited) + threadIdx.x - kWarpgroup;
    sync_threads(1 + kConsumers, kConsumerThreads);
    if (cluster_rank() > 0) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        const float *const k = sums.dkeys + 4 * i, *const v = sums.dvalues + 4 * i;
        part[i * kConsumerThreads] = make_float4(k[0], k[1], k[2], k[3]);
        part[(kQuads + i) * kConsumerThreads] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
    sync_cluster();
    for (int rank = 1; cluster_rank() == 0 && rank < blocks; ++rank) {
      const float4* const other = in_block(part, static_cast<uint32_t>(rank));
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        add(other[i * kConsumerThreads], sums.dkeys + 4 * i);
        add(other[(kQuads + i) * kConsumerThreads], sums.dvalues + 4 * i);
      }
    }
    sync_cluster();
  }
  __device__ static __forceinline__ void add(float4 value, float* sums) {
    sums[0] += value.x;
    sums[1] += value.y;
    sums[2] += value.z;
    sums[3] += value.w;
  }
};

/// Into how many blocks the visits of a tile are split, so that few tiles still occupy a large device; by the
/// shape alone, since the order of additions follows from it.
int splits_of(int tiles) {
  constexpr int kBlocks = 256, kMost = 8;
  int splits = 1;
  while (splits < kMost && tiles * splits < kBlocks) splits *= 2;
  return splits;
}

template <int kDim>
cudaError_t launch(const BackwardOperands& operands, const AttentionGradient<bf16>& g,
                   const CudaContext& context) {
  using Side = KeySide<kDim>;
  TileOrder order = tile_order(g.shape, g.shape.kv_heads, 1, Side::kRows);
  order.splits = splits_of(order.count());
  return launch_side<Side>(operands, g, order, 1, Side::kQueries, Side::kRows, context);
}

}  // namespace

cudaError_t differentiate_keys(const BackwardOperands& operands, const AttentionGradient<bf16>& g,
                               const CudaContext& context) {
  return g.shape.dim == 64 ? launch<64>(operands, g, context) : launch<128>(operands, g, context);
}

}  // namespace moec::cuda::hopper
