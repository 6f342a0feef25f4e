// Token and position embeddings. Weights are [vocabulary, D] and [context, D].
#include <bit>

#include "kernels/cuda/call_run.h"
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/counting_sort.cuh"
#include "kernels/cuda/dropout_vector.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/shuffle.h"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

struct TokenRow {
  const int32_t* tokens;

  __device__ int64_t operator()(int64_t t) const { return tokens[t]; }
};

/// y[i] = (accumulate ? y[i] : 0) + sums.
template <int kWidth, class Out, class Acc>
__device__ void store_sums(const Acc (&sums)[kWidth], Out* y, int i, bool accumulate) {
  auto out = accumulate ? load<kWidth>(y, i) : Vector<Out, kWidth>{};
#pragma unroll
  for (int j = 0; j < kWidth; ++j) out.value[j] = to_storage<Out>(static_cast<Acc>(out.value[j]) + sums[j]);
  store(y, i, out);
}

template <class T, class Grad>
struct EmbeddingBwd {
  const T* dy;
  const int32_t* order;    // [tokens] positions, sorted by token; null where they are not
  const int2* key_ranges;  // [vocabulary] as counting_sort writes them; likewise
  Grad* dweight;
  int tokens;
  int vocabulary;
  int cols;
  bool accumulate;
};

/// sums += column vector `i` of dy at the positions order[first], order[first + stride], ... before `end`.
template <int kWidth, class T, class Grad, class Acc>
__device__ void add_positions(const EmbeddingBwd<T, Grad>& bwd, int i, int first, int end, int stride,
                              Acc (&sums)[kWidth]) {
#pragma unroll 4
  for (int place = first; place < end; place += stride) {
    const auto row = load<kWidth>(bwd.dy + int64_t{bwd.order[place]} * bwd.cols, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sums[j] += static_cast<Acc>(row.value[j]);
  }
}

/// A block makes a warp's width of column vectors of as many rows of dweight as it has warps: each warp one
/// row, and all warps together those of tokens that occur more than kFrequent times.
template <class T, class Grad, int kWidth>
__global__ void __launch_bounds__(kThreads) embedding_bwd_kernel(const EmbeddingBwd<T, Grad> bwd) {
  begin_kernel();
  using Acc = Accumulator<T>;
  constexpr int kFrequent = 64, kRows = kThreads / kWarp;
  __shared__ int first[kRows], end[kRows];
  __shared__ Acc shared[kRows][kWarp][kWidth];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, vectors = bwd.cols / kWidth;
  const int column_blocks = (vectors + kWarp - 1) / kWarp;
  const int i = static_cast<int>(blockIdx.x) % column_blocks * kWarp + lane;
  const int first_row = static_cast<int>(blockIdx.x) / column_blocks * kRows;
  if (threadIdx.x < kRows) {
    const int row = first_row + static_cast<int>(threadIdx.x);
    const int2 range = row < bwd.vocabulary ? bwd.key_ranges[row] : int2{0, 0};
    first[threadIdx.x] = range.y == 0 ? 0 : bwd.tokens - range.x;
    end[threadIdx.x] = range.y;
  }
  __syncthreads();

  const int row = first_row + warp, count = end[warp] - first[warp];
  if (i < vectors && row < bwd.vocabulary && count <= kFrequent && (count > 0 || !bwd.accumulate)) {
    Acc sums[kWidth] = {};
    add_positions(bwd, i, first[warp], end[warp], 1, sums);
    store_sums(sums, bwd.dweight + int64_t{row} * bwd.cols, i, bwd.accumulate);
  }
  for (int r = 0; r < kRows; ++r) {
    if (end[r] - first[r] <= kFrequent) continue;
    Acc sums[kWidth] = {};
    if (i < vectors) add_positions(bwd, i, first[r] + warp, end[r], kRows, sums);
    __syncthreads();  // the sums of an earlier row have been read
#pragma unroll
    for (int j = 0; j < kWidth; ++j) shared[warp][lane][j] = sums[j];
    __syncthreads();
    if (warp > 0 || i >= vectors) continue;
    for (int other = 1; other < kRows; ++other)
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[j] += shared[other][lane][j];
    store_sums(sums, bwd.dweight + int64_t{first_row + r} * bwd.cols, i, bwd.accumulate);
  }
}

/// Where few tokens make up a small table, every block looks for its row among all of them.
constexpr int64_t kFewTokens = 2048, kSmallTable = 4096;

/// A block makes row number `row` of dweight. Each warp adds up what it finds in its piece of the tokens, in
/// order, and then the first one what all have found.
template <int kWidth, class T, class Grad>
__device__ void sum_tokens(const int32_t* tokens, const EmbeddingBwd<T, Grad>& bwd, int row) {
  using Acc = Accumulator<T>;
  constexpr int kWarps = kThreads / kWarp;
  __shared__ int found[kWarps][kFewTokens / kWarps];
  __shared__ Acc shared[kWarps][kWarp][kWidth];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, vectors = bwd.cols / kWidth;
  const int piece = (bwd.tokens + kWarps - 1) / kWarps, end = min(bwd.tokens, (warp + 1) * piece);
  int count = 0;
#pragma unroll 4
  for (int first = warp * piece; first < end; first += kWarp) {
    const bool mine = first + lane < end && tokens[first + lane] == row;
    const unsigned lanes = __ballot_sync(kAllLanes, mine);
    if (mine) found[warp][count + __popc(lanes & ((1u << lane) - 1))] = first + lane;
    count += __popc(lanes);
  }
  if (!__syncthreads_or(count) && bwd.accumulate) return;
  for (int first = 0; first < vectors; first += kWarp) {
    const int i = first + lane;
    Acc sums[kWidth] = {};
    if (i < vectors) {
#pragma unroll 8
      for (int k = 0; k < count; ++k) {
        const auto v = load<kWidth>(bwd.dy + int64_t{found[warp][k]} * bwd.cols, i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] += static_cast<Acc>(v.value[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) shared[warp][lane][j] = sums[j];
    __syncthreads();
    if (warp == 0 && i < vectors) {
      for (int other = 1; other < kWarps; ++other)
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] += shared[other][lane][j];
      store_sums(sums, bwd.dweight + int64_t{row} * bwd.cols, i, bwd.accumulate);
    }
    __syncthreads();  // the sums have been read
  }
}

template <class T, class Grad, int kWidth>
__global__ void __launch_bounds__(kThreads)
    embedding_bwd_few_kernel(const int32_t* tokens, const EmbeddingBwd<T, Grad> bwd) {
  begin_kernel();
  sum_tokens<kWidth>(tokens, bwd, static_cast<int>(blockIdx.x));
}

/// The positions of every token, in order: a radix sort of the tokens from the last digit to the first.
struct TokenOrder {
  const int32_t* order;
  const int2* key_ranges;
};

cudaError_t sort_tokens(const KernelCall& call, const CudaContext& context, TokenOrder& result) {
  const TensorView& tokens = call.inputs[0];
  const int64_t n = tokens.elements(), vocabulary = call.outputs[0].rows();
  constexpr int kDigitBits = std::bit_width(static_cast<uint64_t>(kTokenDigits - 1));
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(vocabulary - 1))));
  auto* key_ranges = call.workspace.as<int2>();
  auto* order = reinterpret_cast<int32_t*>(key_ranges + vocabulary);
  int32_t *sorted = nullptr, *next = order, *after = order + n;
  for (int shift = 0; shift < bits; shift += kDigitBits) {
    const int digit_bits = std::min(kDigitBits, bits - shift);
    const bool last = shift + digit_bits == bits;
    const cudaError_t status = counting_sort(context, {.keys = tokens.as<const int32_t>(),
                                                       .n = n,
                                                       .shift = shift,
                                                       .mask = (1 << digit_bits) - 1,
                                                       .buckets = 1 << digit_bits,
                                                       .order_in = sorted,
                                                       .order = next,
                                                       .key_ranges = last ? key_ranges : nullptr,
                                                       .keys_end = vocabulary,
                                                       .counts = order + 2 * n});
    if (status != cudaSuccess) return status;
    sorted = next;
    std::swap(next, after);
  }
  result = {sorted, key_ranges};
  return cudaSuccess;
}

/// y = x + weight[position]; y may be x. A warp per row.
template <class T, int kWidth>
__global__ void position_embedding_kernel(const T* x, const T* weight, T* y, int64_t rows, int seq_len,
                                          int cols) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kWarp>();
  if (row >= rows) return;
  weight += row % seq_len * cols;
  for (int i = group_lane<kWarp>(); i < cols / kWidth; i += kWarp) {
    auto v = load<kWidth>(x + row * cols, i);
    const auto position = load<kWidth>(weight, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      v.value[j] = to_storage<T>(static_cast<Acc>(v.value[j]) + static_cast<Acc>(position.value[j]));
    store(y + row * cols, i, v);
  }
}

/// The tokens of a batch that was loaded.
struct LoadedTokens {
  const int32_t* tokens;

  __device__ int32_t operator()(int64_t row) const { return tokens[row]; }
};

/// Those of the batch that load_batch would load, which are stored with their targets. A warp per token.
struct WindowTokens {
  const int32_t* window;
  const TrainState* state;
  fb::Sampling sampling;
  bool evaluate;
  int64_t batch, seq_len;
  int32_t* tokens;
  int32_t* targets;

  explicit WindowTokens(const KernelCall& load_batch)
      : window(load_batch.inputs[0].as<const int32_t>()),
        state(load_batch.inputs[1].as<const TrainState>()),
        sampling(load_batch.attrs<fb::LoadBatchT>().sampling),
        evaluate(load_batch.attrs<fb::LoadBatchT>().evaluate),
        batch(load_batch.outputs[0].rows()),
        seq_len(load_batch.outputs[0].cols()),
        tokens(load_batch.outputs[0].as<int32_t>()),
        targets(load_batch.outputs[1].as<int32_t>()) {}

  __device__ int32_t operator()(int64_t row) const {
    const int64_t start = sequence_start(*state, sampling, evaluate, batch, seq_len, row / seq_len);
    const int32_t* at = window + start + row % seq_len;
    const int32_t token = at[0];
    if (group_lane<kWarp>() == 0) {
      tokens[row] = token;
      targets[row] = at[1];
    }
    return token;
  }
};

template <class T, class Tokens>
struct FusedEmbedding {
  Tokens tokens;
  const T* weight;
  const T* position_weight;
  T* y;
  int64_t rows;
  int seq_len;
  int cols;
  Dropout dropout;
};

/// y = dropout(weight[token] + position_weight[position]), the sum rounded to storage. A warp per row.
template <class T, class Tokens, int kWidth>
__global__ void __launch_bounds__(kThreads) fused_embedding_kernel(const FusedEmbedding<T, Tokens> fused) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kWarp>();
  if (row >= fused.rows) return;
  const bool drops = fused.dropout.state != nullptr;
  const T* position_weight = fused.position_weight + row % fused.seq_len * fused.cols;
  const T* weight = fused.weight + int64_t{fused.tokens(row)} * fused.cols;
  for (int i = group_lane<kWarp>(); i < fused.cols / kWidth; i += kWarp) {
    Acc sums[kWidth], position[kWidth];
    unpack(load_packed<kWidth>(weight, i), sums);
    unpack(load_packed<kWidth>(position_weight, i), position);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sums[j] += position[j];
    Packed<T, kWidth> stored = pack<T>(sums);
    if (drops) {
      unpack(stored, sums);
      drop(fused.dropout, kept_elements<kWidth>(fused.dropout, row * fused.cols + i * kWidth), sums);
      stored = pack<T>(sums);
    }
    store(fused.y + row * fused.cols, i, stored);
  }
}

template <class T, class Grad>
struct PositionEmbeddingBwd {
  const T* dy;
  Grad* dweight;
  int64_t positions;
  int64_t batch;
  int seq_len;
  int cols;
  bool accumulate;
};

/// A warp sums one position over the batch; positions beyond the sequence get zeros, or keep what they have.
template <int kWidth, class T, class Grad>
__device__ void sum_position(const PositionEmbeddingBwd<T, Grad>& bwd, int64_t position) {
  using Acc = Accumulator<T>;
  if (position >= bwd.positions || (position >= bwd.seq_len && bwd.accumulate)) return;
  const int64_t terms = position < bwd.seq_len ? bwd.batch : 0;
  for (int i = group_lane<kWarp>(); i < bwd.cols / kWidth; i += kWarp) {
    Acc sums[kWidth] = {};
#pragma unroll 4
    for (int64_t b = 0; b < terms; ++b) {
      const auto row = load<kWidth>(bwd.dy + (b * bwd.seq_len + position) * bwd.cols, i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[j] += static_cast<Acc>(row.value[j]);
    }
    store_sums(sums, bwd.dweight + position * bwd.cols, i, bwd.accumulate);
  }
}

template <class T, class Grad, int kWidth>
__global__ void position_embedding_bwd_kernel(const PositionEmbeddingBwd<T, Grad> bwd) {
  begin_kernel();
  sum_position<kWidth>(bwd, group_row<kWarp>());
}

/// Both: the first blocks are of tokens, the rest of positions.
template <class T, class Grad, int kWidth>
__global__ void __launch_bounds__(kThreads)
    embeddings_bwd_kernel(const int32_t* tokens, const EmbeddingBwd<T, Grad> of_tokens,
                          const PositionEmbeddingBwd<T, Grad> of_positions) {
  begin_kernel();
  const int row = static_cast<int>(blockIdx.x);
  if (row < of_tokens.vocabulary)
    sum_tokens<kWidth>(tokens, of_tokens, row);
  else
    sum_position<kWidth>(of_positions, group_row<kWarp>() - of_tokens.vocabulary * (kThreads / kWarp));
}

bool of_few_tokens(const KernelCall& embedding_bwd) {
  return embedding_bwd.inputs[0].elements() <= kFewTokens && embedding_bwd.outputs[0].rows() <= kSmallTable;
}

/// Returns body.template operator()<T, Grad, kWidth>() for one or two gradients of tables, from dy.
template <class Body>
cudaError_t with_gradient_layout(const TensorView& dy, const TensorView& dweight, const TensorView& other,
                                 Body&& body) {
  return with_type(dy.dtype, [&]<class T>() {
    return with_gradient_type<T>(dweight.dtype, [&]<class Grad>() {
      return with_width<T>(dy.cols(), {&dy, &dweight, &other},
                           [&]<int kWidth>() { return body.template operator()<T, Grad, kWidth>(); });
    });
  });
}

template <class T, class Grad>
EmbeddingBwd<T, Grad> embedding_bwd_of(const KernelCall& call, const TokenOrder& sorted) {
  const TensorView &tokens = call.inputs[0], &dy = call.inputs[1], &dweight = call.outputs[0];
  return {dy.as<const T>(),
          sorted.order,
          sorted.key_ranges,
          dweight.as<Grad>(),
          static_cast<int>(tokens.elements()),
          static_cast<int>(dweight.rows()),
          static_cast<int>(dweight.cols()),
          call.inputs[2].present()};
}

template <class T, class Grad>
PositionEmbeddingBwd<T, Grad> position_embedding_bwd_of(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &dweight = call.outputs[0];
  return {.dy = dy.as<const T>(),
          .dweight = dweight.as<Grad>(),
          .positions = dweight.rows(),
          .batch = dy.rows() / dy.dim(1),
          .seq_len = static_cast<int>(dy.dim(1)),
          .cols = static_cast<int>(dy.cols()),
          .accumulate = call.inputs[1].present()};
}

/// The rows of a fused_embedding.
template <class Tokens>
cudaError_t embed(const KernelCall& call, const Tokens& tokens, const CudaContext& context) {
  const TensorView &weight = call.inputs[1], &position_weight = call.inputs[2], &y = call.outputs[0];
  const auto& attrs = call.attrs<fb::DropoutT>();
  const Dropout dropout(call.inputs[3].as<const TrainState>(), attrs.stream, attrs.p);
  return with_type(y.dtype, [&]<class T>() {
    const FusedEmbedding<T, Tokens> fused = {.tokens = tokens,
                                             .weight = weight.as<const T>(),
                                             .position_weight = position_weight.as<const T>(),
                                             .y = y.as<T>(),
                                             .rows = call.inputs[0].elements(),
                                             .seq_len = static_cast<int>(call.inputs[0].cols()),
                                             .cols = static_cast<int>(y.cols()),
                                             .dropout = dropout};
    return with_width<T>(y.cols(), {&weight, &position_weight, &y}, [&]<int kWidth>() {
      return launch(context, fused_embedding_kernel<T, Tokens, kWidth>, group_blocks<kWarp>(fused.rows),
                    kThreads, fused);
    });
  });
}

cudaError_t enqueue_batch_embedding(std::span<const KeyedCall> calls, const CudaContext& context) {
  const WindowTokens tokens(*calls[0].call);
  const KernelCall& call = *calls[1].call;
  if (calls[1].key == "fused_embedding") return embed(call, tokens, context);
  return copy_rows(context, call.inputs[1], call.outputs[0], call.inputs[0].elements(), tokens);
}

cudaError_t enqueue_embeddings_bwd(std::span<const KeyedCall> calls, const CudaContext& context) {
  const KernelCall &positions = *calls[0].call, &tokens = *calls[1].call;
  return with_gradient_layout(
      tokens.inputs[1], tokens.outputs[0], positions.outputs[0], [&]<class T, class Grad, int kWidth>() {
        const int64_t position_blocks = group_blocks<kWarp>(positions.outputs[0].rows());
        return launch(context, embeddings_bwd_kernel<T, Grad, kWidth>,
                      tokens.outputs[0].rows() + position_blocks, kThreads,
                      tokens.inputs[0].as<const int32_t>(), embedding_bwd_of<T, Grad>(tokens, {}),
                      position_embedding_bwd_of<T, Grad>(positions));
      });
}

}  // namespace

cudaError_t embedding(const KernelCall& call, const CudaContext& context) {
  const TensorView& tokens = call.inputs[0];
  return copy_rows(context, call.inputs[1], call.outputs[0], tokens.elements(),
                   TokenRow{tokens.as<const int32_t>()});
}

/// Rows of dweight are sums in a fixed order: of few tokens each block finds its own, more are sorted first.
cudaError_t embedding_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[1], &dweight = call.outputs[0];
  const bool few = of_few_tokens(call);
  TokenOrder sorted = {};
  if (!few)
    if (const cudaError_t status = sort_tokens(call, context, sorted); status != cudaSuccess) return status;
  return with_gradient_layout(dy, dweight, {}, [&]<class T, class Grad, int kWidth>() {
    const auto bwd = embedding_bwd_of<T, Grad>(call, sorted);
    if (few)
      return launch(context, embedding_bwd_few_kernel<T, Grad, kWidth>, dweight.rows(), kThreads,
                    call.inputs[0].as<const int32_t>(), bwd);
    const int64_t column_blocks = ceil_div(dy.cols() / kWidth, kWarp);
    const int64_t row_blocks = ceil_div(dweight.rows(), kThreads / kWarp);
    return launch(context, embedding_bwd_kernel<T, Grad, kWidth>, row_blocks * column_blocks, kThreads, bwd);
  });
}

cudaError_t position_embedding(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &weight = call.inputs[1], &y = call.outputs[0];
  return with_type(x.dtype, [&]<class T>() {
    return with_width<T>(x.cols(), {&x, &weight, &y}, [&]<int kWidth>() {
      return launch(context, position_embedding_kernel<T, kWidth>, group_blocks<kWarp>(x.rows()), kThreads,
                    x.as<const T>(), weight.as<const T>(), y.as<T>(), x.rows(), static_cast<int>(x.dim(1)),
                    static_cast<int>(x.cols()));
    });
  });
}

cudaError_t fused_embedding(const KernelCall& call, const CudaContext& context) {
  return embed(call, LoadedTokens{call.inputs[0].as<const int32_t>()}, context);
}

cudaError_t position_embedding_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &dweight = call.outputs[0];
  return with_gradient_layout(dy, dweight, {}, [&]<class T, class Grad, int kWidth>() {
    return launch(context, position_embedding_bwd_kernel<T, Grad, kWidth>,
                  group_blocks<kWarp>(dweight.rows()), kThreads, position_embedding_bwd_of<T, Grad>(call));
  });
}

/// Of few tokens: each of them finds its place in the data for itself.
CallRun batch_embedding_run(std::span<const KeyedCall> sequence, const CudaContext&) {
  if (!begins_with(sequence, {"load_batch", "embedding"}) &&
      !begins_with(sequence, {"load_batch", "fused_embedding"}))
    return {};
  const TensorView &loaded = sequence[0].call->outputs[0], &tokens = sequence[1].call->inputs[0];
  if (loaded.data != tokens.data || tokens.elements() > kFewTokens) return {};
  return {2, {{enqueue_batch_embedding, operands_of(sequence.first(2))}}};
}

CallRun embeddings_bwd_run(std::span<const KeyedCall> sequence, const CudaContext&) {
  if (!begins_with(sequence, {"position_embedding_bwd", "embedding_bwd"})) return {};
  const KernelCall &positions = *sequence[0].call, &tokens = *sequence[1].call;
  if (positions.inputs[0].data != tokens.inputs[1].data ||
      positions.outputs[0].dtype != tokens.outputs[0].dtype || !of_few_tokens(tokens))
    return {};
  return {2, {{enqueue_embeddings_bwd, operands_of(sequence.first(2))}}};
}

}  // namespace moec::cuda
