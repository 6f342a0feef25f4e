#include <type_traits>

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
    TileStatistics statistics;
  };
  struct Shared {
    Own own[kOwnSlots];
    Visited visited[kSlots];
    Ring<kOwnSlots> own_ring;
    Ring<kSlots> ring;
  };

  /// The tile of keys of a turn.
  struct Work {
    int batch, kv_head, first_key;

    __device__ Work(const AttentionShape& shape, int head, int rank)
        : batch(head / shape.kv_heads), kv_head(head % shape.kv_heads), first_key(rank * kRows) {}
  };

  /// A block's visits to tiles of queries: of all heads of the group, from the last positions back to the
  /// first key's, so that blocks ask for the same queries at about the same time. The blocks of a cluster
  /// take turns.
  struct Visits {
    int group, heads_between, tiles_between;  // from a visit to the next
    int head, first_query;                    // of the next visit; the head within the group

    __device__ Visits(const AttentionShape& shape, int first_key, int splits)
        : group(shape.group()), heads_between(splits % group), tiles_between(splits / group) {
      const int part = static_cast<int>(cluster_rank());
      head = part % group;
      first_query = first_key + (tiles(shape, first_key) - 1 - part / group) * kQueries;
    }
    __device__ __forceinline__ void advance() {
      head += heads_between;
      first_query -= tiles_between * kQueries;
      if (head < group) return;
      head -= group;
      first_query -= kQueries;
    }

    /// How many there are to queries that see keys from `first_key` on. Later keys are seen in the first
    /// ones.
    __device__ static int count(const AttentionShape& shape, int first_key, int splits) {
      const int part = static_cast<int>(cluster_rank());
      return max(tiles(shape, first_key) * shape.group() - part + splits - 1, 0) / splits;
    }
    __device__ static int tiles(const AttentionShape& shape, int first_key) {
      return max(shape.seq - first_key + kQueries - 1, 0) / kQueries;
    }
  };

  __device__ static void produce(const BackwardOperands& operands, Shared& shared) {
    const AttentionShape& shape = operands.shape;
    RingPlace<kOwnSlots> own_place;
    RingPlace<kSlots> place;
    operands.order.for_each_turn([&](int head, int rank) {
      const Work work(shape, head, rank);
      Own& own = shared.own[own_place.slot];
      Barrier& own_full = shared.own_ring.fill(own_place, sizeof(Own));
      const int key_head = shape.heads + work.kv_head, value_head = key_head + shape.kv_heads;
      own.keys.load(operands.keys, key_head, work.first_key, work.batch, own_full);
      own.values.load(operands.keys, value_head, work.first_key, work.batch, own_full);
      own_place.advance();
      const int splits = operands.order.splits;
      Visits visits(shape, work.first_key, splits);
      for (int left = Visits::count(shape, work.first_key, splits); left > 0; --left, visits.advance()) {
        const int query_head = work.kv_head * shape.group() + visits.head, first = visits.first_query;
        Visited& visited = shared.visited[place.slot];
        constexpr int kStatisticsBytes = sizeof(TileStatistics);
        Barrier& full = shared.ring.fill(place, 2 * sizeof(RowTile<kQueries, kDim>) + kStatisticsBytes);
        visited.queries.load(operands.queries, query_head, first, work.batch, full);
        visited.dy.load(operands.dy, query_head, first, work.batch, full);
        load_bytes(&operands.statistics_from(work.batch, query_head, first), kStatisticsBytes, full,
                   &visited.statistics);
        place.advance();
      }
    });
  }

  /// What a thread holds of 64 keys. From scores come weights, from dweights dscores, and from
  /// both the factors of the sums.
  struct Sums {
    float scores[kQueries / 2], dweights[kQueries / 2], dkeys[kDim / 2] = {}, dvalues[kDim / 2] = {};
    float weights[kQueries / 2];  // apart from the scores, so that the next ones can be on their way
    uint32_t weight_factors[kQueries / 4], dscore_factors[kQueries / 4];

    __device__ __forceinline__ void start_scores(const OwnFactor& keys, const Visited& visited) {
      pin(scores);
      begin_products();
      keys.multiply_rows(visited.queries, scores);
      commit_products();
    }
    __device__ __forceinline__ void start_dweights(const OwnFactor& values, const Visited& visited) {
      pin(dweights);
      begin_products();
      values.multiply_rows(visited.dy, dweights);
      commit_products();
    }
    /// Keys do not see queries before them: the tile's first query has the number `offset` from the first
    /// key.
    __device__ __forceinline__ void weigh(const TileStatistics& statistics, float scale, int offset) {
      if (offset < 64) {
#pragma unroll
        for (int i = 0; i < kQueries / 2; ++i) {
          if (fragment_row() + i / 2 % 2 * 8 > offset + i / 4 * 8 + fragment_col() + i % 2)
            scores[i] = -INFINITY;
        }
      }
#pragma unroll
      for (int i = 0; i < kQueries / 2; i += 4) {
        const float2 lse = of_columns(statistics.lse, i);
#pragma unroll
        for (int j = i; j < i + 4; j += 2) {
          weights[j] = exp2_fast(fmaf(scores[j], scale, -lse.x));
          weights[j + 1] = exp2_fast(fmaf(scores[j + 1], scale, -lse.y));
        }
      }
      to_fragments(weights, weight_factors);
    }
    /// Of the columns of scores[i] and scores[i + 1].
    __device__ __forceinline__ static float2 of_columns(const float (&values)[kQueries], int i) {
      return *reinterpret_cast<const float2*>(values + i / 4 * 8 + fragment_col());
    }
    /// dscores are without the factor shape.scale().
    __device__ __forceinline__ void differentiate(const TileStatistics& statistics) {
#pragma unroll
      for (int i = 0; i < kQueries / 2; i += 4) {
        const float2 delta = of_columns(statistics.delta, i);
#pragma unroll
        for (int j = i; j < i + 4; j += 2) {
          dweights[j] = weights[j] * (dweights[j] - delta.x);
          dweights[j + 1] = weights[j + 1] * (dweights[j + 1] - delta.y);
        }
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
    /// Waits for the scores and both gradients, but not for the kLeft groups of products started behind them.
    template <int kLeft>
    __device__ __forceinline__ void finish_gradients() {
      wait_products<kLeft>(scores, dkeys, dvalues);
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
      const Work work(shape, head, rank);
      const int first_key = work.first_key + row, splits = operands.order.splits;
      Own& own = shared.own[own_place.slot];
      Sums sums;
      shared.own_ring.await(own_place);
      const OwnFactor keys(own.keys, row), values(own.values, row);

      Visits visits(shape, work.first_key, splits);
      RingPlace<kSlots> previous;
      bool summing = false;  // the products of the previous visit with its tiles
      const auto work_through = [&]<int kVisits>(std::integral_constant<int, kVisits>) {
        shared.ring.await(place);
        sums.start_scores(keys, shared.visited[place.slot]);
#pragma unroll
        for (int i = 0; i < kVisits; ++i) {
          const RingPlace<kSlots> current = place;
          const Visited& visited = shared.visited[current.slot];
          const int offset = visits.first_query - first_key;
          visits.advance();
          place.advance();
          if (i + 1 < kVisits) shared.ring.await(place);
          sums.start_dweights(values, visited);
          sums.template finish_gradients<1>();
          if (summing) shared.ring.release(previous);
          sums.weigh(visited.statistics, scale * kLog2E, offset);
          sums.start_dvalues(visited);
          if (i + 1 < kVisits) {
            sums.start_scores(keys, shared.visited[place.slot]);
            wait_products<2>(sums.dweights);
          } else {
            wait_products<1>(sums.dweights);
          }
          sums.differentiate(visited.statistics);
          sums.start_dkeys(visited);
          summing = true;
          previous = current;
        }
      };
      // In all visits of a run but the last, the next scores are on their way while a warpgroup works on
      // these. The assembler demands that products whose sums are read end in the iteration in which they
      // start.
      constexpr int kRun = kDim == 64 ? 4 : 1;
      int left = Visits::count(shape, first_key, splits);
      for (; left >= kRun; left -= kRun) work_through(std::integral_constant<int, kRun>());
      if constexpr (kRun > 1) {
        for (; left > 0; --left) work_through(std::integral_constant<int, 1>());
      }
      sums.template finish_gradients<0>();
      if (summing) shared.ring.release(previous);
      const int unseen =
          Visits::count(shape, work.first_key, splits) - Visits::count(shape, first_key, splits);
      for (int i = 0; i < unseen; ++i) {  // queries before all of these keys
        shared.ring.await(place);
        shared.ring.release(place);
        place.advance();
      }

      if (splits > 1) add_cluster(sums, shared, splits);
      const int key_head = shape.heads + work.kv_head, part = static_cast<int>(cluster_rank());
      if (part == 0) {
        const int key = first_key + fragment_row();
        if (operands.rotation.head_dim != 0) rotate_rows<kDim>(operands.rotation, sums.dkeys, {key, key + 8});
        store_rows(sums.dkeys, {scale, scale}, own.keys, row, 1 + consumer,
                   [&](int i) { return operands.gradient(work.batch, first_key + i, key_head); });
      }
      if (part == splits - 1) {
        store_rows(sums.dvalues, {1, 1}, own.values, row, 1 + consumer, [&](int i) {
          return operands.gradient(work.batch, first_key + i, key_head + shape.kv_heads);
        });
      }
      fence_shared_for_async();
      shared.own_ring.release(own_place);
      own_place.advance();
    });
  }

  /// Adds the sums of the blocks of the cluster, in their order, those of keys in the first block and those
  /// of values in the last, by way of the memory of the visited tiles: the blocks of a cluster have one turn,
  /// so that nothing is copied there any more.
  __device__ static void add_cluster(Sums& sums, Shared& shared, int blocks) {
    constexpr int kConsumerThreads = kConsumers * kWarpgroup;
    using Part = float4[kDim / 8][kConsumerThreads];
    static_assert(sizeof(shared.visited) >= 2 * sizeof(Part));
    Part* const parts = reinterpret_cast<Part*>(shared.visited);
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
    const auto publish = [thread](const float(&gradient)[kDim / 2], Part& part) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i)
        part[i][thread] =
            make_float4(gradient[4 * i], gradient[4 * i + 1], gradient[4 * i + 2], gradient[4 * i + 3]);
    };
    const auto add = [thread, blocks](float(&gradient)[kDim / 2], Part& part) {
      for (int rank = 0; rank < blocks; ++rank) {
        const Part& other = *in_block(&part, static_cast<uint32_t>(rank));
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) {
          const float4 quad = other[i][thread];
          const float values[] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& sum = gradient[4 * i + j];
            sum = rank == 0 ? values[j] : sum + values[j];
          }
        }
      }
    };
    sync_threads(1 + kConsumers, kConsumerThreads);
    publish(sums.dkeys, parts[0]);
    publish(sums.dvalues, parts[1]);
    sync_cluster();
    const int own = static_cast<int>(cluster_rank());
    if (own == 0) add(sums.dkeys, parts[0]);
    if (own == blocks - 1) add(sums.dvalues, parts[1]);
    sync_cluster();
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
