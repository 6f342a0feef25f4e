#include <type_traits>

#include "kernels/cuda/hopper/attention_bwd.cuh"
#include "kernels/workspace.h"

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
  /// Neighbours among the visits of a tile of keys: those to queries of all heads of the group, from the last
  /// positions back to the first key's, so that blocks ask for the same queries at about the same time.
  struct Piece {
    int batch, kv_head, first_key;
    int begin, end;     // of the tile's visits
    int before, after;  // pieces of the tile, which other blocks do
    bool present = false;
  };

  struct Shared {
    Own own[kOwnSlots];
    Piece pieces[kOwnSlots];  // in the ring of what the block owns; an absent one is the end
    Visited visited[kSlots];
    Ring<kOwnSlots, kWarpgroup> own_ring;
    Ring<kSlots, kWarpgroup> ring;
    uint32_t arrived[kConsumers];
  };

  /// How many visits there are to queries that see keys from `first_key` on. Later keys are seen in the first
  /// ones.
  __device__ static int count_visits(const AttentionShape& shape, int first_key) {
    return query_tiles(shape, first_key) * shape.group();
  }
  __device__ static int query_tiles(const AttentionShape& shape, int first_key) {
    return max(shape.seq - first_key + kQueries - 1, 0) / kQueries;
  }

  /// The pieces of a block: whole tiles, or those of a share.
  class Pieces {
   public:
    __device__ explicit Pieces(const BackwardOperands& operands) {
      const KeyShares& shares = operands.shares;
      if (shares.count == 0) return;
      const AttentionShape& shape = operands.shape;
      const int first = static_cast<int>(blockIdx.x) * shares.share;
      left_ = min(shape.batch * shape.kv_heads * shares.per_head - first, shares.share);
      head_ = first / shares.per_head;
      begin_ = first % shares.per_head;
      int length = kTurn + count_visits(shape, 0);
      for (; begin_ >= length; ++rank_) {
        begin_ -= length;
        length -= kRows / kQueries * shape.group();
      }
    }

    __device__ Piece next(const BackwardOperands& operands) {
      const AttentionShape& shape = operands.shape;
      const KeyShares& shares = operands.shares;
      if (shares.count == 0) {
        const int index = operands.order.turn(round_++);
        if (index >= operands.order.count()) return {};
        operands.order.visit_tile(index, [this](int head, int rank) { head_ = head, rank_ = rank; });
        left_ = kTurn + count_visits(shape, rank_ * kRows);
      } else if (left_ == 0) {
        return {};
      }
      const int length = kTurn + count_visits(shape, rank_ * kRows), end = min(length, begin_ + left_);
      const Piece piece = {.batch = head_ / shape.kv_heads,
                           .kv_head = head_ % shape.kv_heads,
                           .first_key = rank_ * kRows,
                           .begin = max(begin_ - kTurn, 0),
                           .end = max(end - kTurn, 0),
                           .before = (begin_ + shares.share - 1) / shares.share,
                           .after = (length - end + shares.share - 1) / shares.share,
                           .present = true};
      left_ -= end - begin_;
      begin_ = 0;
      if (++rank_ == operands.order.tiles) {
        rank_ = 0;
        ++head_;
      }
      return piece;
    }

   private:
    static constexpr int kTurn = workspace::AttentionShares::kTurn;
    int round_ = 0;             // of whole tiles
    int head_ = 0, rank_ = 0;   // of the next tile; heads of keys of all batches
    int begin_ = 0, left_ = 0;  // in visits and turns: of the next piece in its tile, of the share from there
  };

  /// From a visit to the next.
  struct Visits {
    int group, head, first_query;  // the head within the group

    __device__ Visits(const AttentionShape& shape, const Piece& piece)
        : group(shape.group()),
          head(piece.begin % group),
          first_query(piece.first_key +
                      (query_tiles(shape, piece.first_key) - 1 - piece.begin / group) * kQueries) {}
    __device__ __forceinline__ void advance() {
      if (++head < group) return;
      head = 0;
      first_query -= kQueries;
    }
  };

  __device__ static void produce(const BackwardOperands& operands, Shared& shared) {
    const AttentionShape& shape = operands.shape;
    RingPlace<kOwnSlots> own_place;
    RingPlace<kSlots> place;
    Pieces pieces(operands);
    for (;;) {
      const Piece piece = pieces.next(operands);
      shared.own_ring.await_empty(own_place);
      shared.pieces[own_place.slot] = piece;
      if (!piece.present) break;
      Own& own = shared.own[own_place.slot];
      Barrier& own_full = shared.own_ring.fill(own_place, sizeof(Own));
      const int key_head = shape.heads + piece.kv_head, value_head = key_head + shape.kv_heads;
      own.keys.load(operands.keys, key_head, piece.first_key, piece.batch, own_full);
      own.values.load(operands.keys, value_head, piece.first_key, piece.batch, own_full);
      own_place.advance();
      Visits visits(shape, piece);
      for (int left = piece.end - piece.begin; left > 0; --left, visits.advance()) {
        const int query_head = piece.kv_head * shape.group() + visits.head, first = visits.first_query;
        Visited& visited = shared.visited[place.slot];
        constexpr int kStatisticsBytes = sizeof(TileStatistics);
        Barrier& full = shared.ring.fill(place, 2 * sizeof(RowTile<kQueries, kDim>) + kStatisticsBytes);
        visited.queries.load(operands.queries, query_head, first, piece.batch, full);
        visited.dy.load(operands.dy, query_head, first, piece.batch, full);
        load_bytes(&operands.statistics_from(piece.batch, query_head, first), kStatisticsBytes, full,
                   &visited.statistics);
        place.advance();
      }
    }
    shared.own_ring.fill(own_place, 0);
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
    for (;;) {
      shared.own_ring.await(own_place);
      const Piece& piece = shared.pieces[own_place.slot];
      if (!piece.present) break;
      Own& own = shared.own[own_place.slot];
      const int first_key = piece.first_key + row;
      Sums sums;
      const OwnFactor keys(own.keys, row), values(own.values, row);

      Visits visits(shape, piece);
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
      const int seen_end = max(min(piece.end, count_visits(shape, first_key)), piece.begin);
      int left = seen_end - piece.begin;
      for (; left >= kRun; left -= kRun) work_through(std::integral_constant<int, kRun>());
      if constexpr (kRun > 1) {
        for (; left > 0; --left) work_through(std::integral_constant<int, 1>());
      }
      sums.template finish_gradients<0>();
      if (summing) shared.ring.release(previous);
      for (int i = seen_end; i < piece.end; ++i) {  // queries before all of these keys
        shared.ring.await(place);
        shared.ring.release(place);
        place.advance();
      }

      if (complete(operands.shares, piece, consumer, shared.arrived[consumer], sums)) {
        const int key_head = shape.heads + piece.kv_head, key = first_key + fragment_row();
        if (operands.rotation.head_dim != 0) rotate_rows<kDim>(operands.rotation, sums.dkeys, {key, key + 8});
        store_rows(sums.dkeys, {scale, scale}, own.keys, row, 1 + consumer,
                   [&](int i) { return operands.gradient(piece.batch, first_key + i, key_head); });
        store_rows(sums.dvalues, {1, 1}, own.values, row, 1 + consumer, [&](int i) {
          return operands.gradient(piece.batch, first_key + i, key_head + shape.kv_heads);
        });
      }
      fence_shared_for_async();
      shared.own_ring.release(own_place);
      own_place.advance();
    }
  }

  /// Whether these are now the sums of a whole tile. Those of a part of it go to the workspace, and the block
  /// that is the last to bring one adds them all, in their order. `arrived` is shared by the warpgroup.
  __device__ static bool complete(const KeyShares& shares, const Piece& piece, int consumer,
                                  volatile uint32_t& arrived, Sums& sums) {
    const auto others = static_cast<uint32_t>(piece.before + piece.after);
    if (others == 0) return true;
    using Part = float4[2][kDim / 8][kWarpgroup];
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, block = static_cast<int>(blockIdx.x);
    const int first = block - piece.before;
    /// Of this tile, in which the share begins or ends.
    const auto part = [&](int share) -> Part& {
      return reinterpret_cast<Part*>(shares.parts)[(2 * share + (share == first)) * kConsumers + consumer];
    };
    const auto publish = [thread](const float(&gradient)[kDim / 2], float4(&to)[kDim / 8][kWarpgroup]) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i)
        to[i][thread] =
            make_float4(gradient[4 * i], gradient[4 * i + 1], gradient[4 * i + 2], gradient[4 * i + 3]);
    };
    const auto add = [thread](float(&gradient)[kDim / 2], const float4(&from)[kDim / 8][kWarpgroup]) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const float4 more = __ldcg(&from[i][thread]);
        gradient[4 * i] += more.x;
        gradient[4 * i + 1] += more.y;
        gradient[4 * i + 2] += more.z;
        gradient[4 * i + 3] += more.w;
      }
    };
    publish(sums.dkeys, part(block)[0]);
    publish(sums.dvalues, part(block)[1]);
    uint32_t* const arrivals = shares.arrivals + first * kConsumers + consumer;
    const auto all_threads_know = [&](auto&& count) {
      sync_threads(1 + consumer, kWarpgroup);
      if (thread == 0) arrived = count();
      sync_threads(1 + consumer, kWarpgroup);
      return arrived;
    };
    if (all_threads_know([&] { return count_arrivals(arrivals); }) != others &&
        all_threads_know([&] { return arrive_at_count(arrivals); }) != others)
      return false;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sums.dkeys[i] = sums.dvalues[i] = 0;
    for (int share = first; share <= block + piece.after; ++share) {
      add(sums.dkeys, part(share)[0]);
      add(sums.dvalues, part(share)[1]);
    }
    return true;
  }
};

template <int kDim>
cudaError_t launch(BackwardOperands operands, const AttentionGradient<bf16>& g, const CudaContext& context) {
  using Side = KeySide<kDim>;
  static_assert(Side::kRows == workspace::AttentionShares::kKeys);
  static_assert(Side::kQueries == workspace::AttentionShares::kQueries);
  operands.order = tile_order(g.shape, g.shape.kv_heads, 1, Side::kRows);
  const int blocks =
      operands.shares.count > 0 ? operands.shares.count : std::min(operands.order.count(), context.sm_count);
  return launch_side<Side>(operands, g, blocks, 1, Side::kQueries, Side::kRows, context);
}

}  // namespace

cudaError_t differentiate_keys(const BackwardOperands& operands, const AttentionGradient<bf16>& g,
                               const CudaContext& context) {
  return g.shape.dim == 64 ? launch<64>(operands, g, context) : launch<128>(operands, g, context);
}

}  // namespace moec::cuda::hopper
