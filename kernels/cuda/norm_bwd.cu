// RMSNorm and LayerNorm over the last dimension D, backward. A first launch writes dx and, per piece of the
// rows, the sums of the parameters' gradients; a second one adds these sums in order. norm_bwd_partials and
// norm_bwd_sum are one each.
#include <array>

#include "kernels/cuda/call_run.h"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/norm_bwd.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

template <class T, class Acc = Accumulator<T>>
struct NormBwd {
  const T* dy;
  const T* x;
  const T* weight;  // null where dx is
  const Acc* mean;  // read for LayerNorm only
  const Acc* rstd;
  const T* dresidual;    // null where there is none
  T* dx;                 // may be dy or dresidual; null where only parameters want gradients
  Acc* weight_partials;  // [pieces, cols]
  Acc* bias_partials;    // likewise, for LayerNorm only; null where there is no bias
  int64_t rows;
  int64_t piece_rows;
  int cols;
};

/// How many threads share a row, how many vectors of a row a thread holds, and the threads of a block: as
/// many as have the registers to hold them and the `kSums` sums of each of their columns.
template <int kSums, class T, int kWidth, int kGroupSize, int kVectorsHeld>
struct BwdLayout {
  static constexpr int kGroup = kGroupSize, kVectors = kVectorsHeld;
  // In registers of 32 bits.
  static constexpr int kOperand = kVectors * static_cast<int>(sizeof(Packed<T, kWidth>)) / 4;
  static constexpr int kColumnSums = kSums * kVectors * kWidth * static_cast<int>(sizeof(Accumulator<T>)) / 4;
  /// Whether there are registers for a second row, which is read while the threads work on the first.
  static constexpr bool kReadsAhead = kGroup == kWarp && kColumnSums + 7 * kOperand <= 140;
  static constexpr int kHeld = kColumnSums + (kReadsAhead ? 7 : 4) * kOperand;
  static constexpr int kBlock = kGroup > kWarp ? kThreads : kHeld <= 110 ? 512 : kHeld <= 140 ? 384 : 256;
  static constexpr int kGroups = kBlock / kGroup;
};

/// sums[cols] = the sums over the block's groups, in their order, of what each holds for its columns.
template <class Layout, int kWidth, class Acc>
__device__ void store_column_sums(const Acc (&held)[Layout::kVectors][kWidth], Acc* sums, int cols) {
  // Chunks of a thread's columns lie a group apart in shared memory: no bank conflicts.
  constexpr int kChunk = kWidth < 4 ? kWidth : 4, kChunks = kWidth / kChunk * Layout::kGroup;
  using Chunk = Vector<Acc, kChunk>;
  constexpr int kVectorBytes = Layout::kGroups * kChunks * static_cast<int>(sizeof(Chunk));
  // Vectors of a thread, in what group_reduce() leaves of the memory.
  constexpr int kMostBytes = 48 * 1024 - (Layout::kGroup > kWarp ? 1024 : 0);
  constexpr int kRound = std::clamp(kMostBytes / kVectorBytes, 1, Layout::kVectors);
  __shared__ Chunk shared[Layout::kGroups][kRound * kChunks];
  const int group = threadIdx.x / Layout::kGroup, lane = threadIdx.x % Layout::kGroup;
#pragma unroll
  for (int first = 0; first < Layout::kVectors; first += kRound) {
    __syncthreads();  // what was there has been read
#pragma unroll
    for (int v = 0; v < std::min(kRound, Layout::kVectors - first); ++v)
#pragma unroll
      for (int j = 0; j < kWidth; ++j)
        shared[group][v * kChunks + j / kChunk * Layout::kGroup + lane].value[j % kChunk] =
            held[first + v][j];
    __syncthreads();
    for (int i = threadIdx.x; i < kRound * kChunks; i += Layout::kBlock) {
      const int v = first + i / kChunks, chunk = i % kChunks;
      const int col =
          (v * Layout::kGroup + chunk % Layout::kGroup) * kWidth + chunk / Layout::kGroup * kChunk;
      if (col >= cols) continue;
      Chunk sum = shared[0][i];
      for (int g = 1; g < Layout::kGroups; ++g)
#pragma unroll
        for (int j = 0; j < kChunk; ++j) sum.value[j] += shared[g][i].value[j];
      store(sums + col, 0, sum);
    }
  }
}

/// What a thread reads of a row.
template <class T, int kWidth, int kVectors>
struct RowOperands {
  using Acc = Accumulator<T>;
  Packed<T, kWidth> dy[kVectors] = {}, x[kVectors] = {}, dresidual[kVectors] = {};
  Acc mean = 0, rstd = 0;

  template <bool kCentred, int kGroup>
  __device__ void read(const NormBwd<T>& norm, int64_t row) {
    const int lane = group_lane<kGroup>(), vectors = norm.cols / kWidth;
    const int64_t start = row * norm.cols;
    if constexpr (kCentred) mean = norm.mean[row];
    rstd = norm.rstd[row];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = lane + v * kGroup;
      if (i >= vectors) break;
      dy[v] = load_packed<kWidth>(norm.dy + start, i);
      x[v] = load_once<kWidth>(norm.x + start, i);
      if (norm.dresidual) dresidual[v] = load_once<kWidth>(norm.dresidual + start, i);
    }
  }
};

/// A block goes through one piece of the rows, a group takes every kGroups-th of them. Places behind the end
/// of a row count as zeros.
template <bool kCentred, class T, int kWidth, class Layout>
__global__ void __launch_bounds__(Layout::kBlock) norm_bwd_kernel(const NormBwd<T> norm) {
  begin_kernel();
  using Acc = Accumulator<T>;
  constexpr int kGroup = Layout::kGroup, kVectors = Layout::kVectors;
  const int lane = group_lane<kGroup>(), vectors = norm.cols / kWidth;
  const auto cols = static_cast<Acc>(norm.cols);
  const int64_t begin = blockIdx.x * norm.piece_rows, end = min(norm.rows, begin + norm.piece_rows);

  Packed<T, kWidth> weight[kVectors] = {};
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (norm.weight && lane + v * kGroup < vectors)
      weight[v] = load_packed<kWidth>(norm.weight, lane + v * kGroup);
  Acc dweight[kVectors][kWidth] = {}, dbias[kVectors][kWidth] = {};
  const int64_t first = begin + threadIdx.x / kGroup;
  RowOperands<T, kWidth, kVectors> next;
  if (Layout::kReadsAhead && first < end) next.template read<kCentred, kGroup>(norm, first);
  for (int64_t row = first; row < end; row += Layout::kGroups) {
    if (!Layout::kReadsAhead) next.template read<kCentred, kGroup>(norm, row);
    auto [dy, x, dresidual, mean, rstd] = next;
    if (Layout::kReadsAhead && row + Layout::kGroups < end)
      next.template read<kCentred, kGroup>(norm, row + Layout::kGroups);

    Acc d[kWidth], n[kWidth], w[kWidth];  // dy, the normalised x and the weight
    const auto unpack_row = [&](int v) {
      unpack(dy[v], d);
      unpack(x[v], n);
      unpack(weight[v], w);
#pragma unroll
      for (Acc& value : n) value = (value - mean) * rstd;
    };
    Acc sum = 0, dot = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      unpack_row(v);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if constexpr (kCentred) sum += d[j] * w[j];
        dot += d[j] * w[j] * n[j];
      }
      keep_packed(dy[v]);
      keep_packed(x[v]);
      keep_packed(weight[v]);
    }
    const Acc along = group_reduce<kGroup>(dot) / cols;
    const Acc constant = kCentred ? group_reduce<kGroup>(sum) / cols : Acc{0};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Acc dx[kWidth];
      unpack(dresidual[v], dx);
      unpack_row(v);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        dweight[v][j] += d[j] * n[j];
        if constexpr (kCentred) dbias[v][j] += d[j];
        dx[j] += rstd * (d[j] * w[j] - constant - n[j] * along);
      }
      const int i = lane + v * kGroup;
      if (norm.dx && i < vectors) store(norm.dx + row * norm.cols, i, pack<T>(dx));
    }
  }
  store_column_sums<Layout, kWidth>(dweight, norm.weight_partials + int64_t{blockIdx.x} * norm.cols,
                                    norm.cols);
  if (kCentred && norm.bias_partials != nullptr)
    store_column_sums<Layout, kWidth>(dbias, norm.bias_partials + int64_t{blockIdx.x} * norm.cols, norm.cols);
}

/// body.template operator()<Layout>() for rows of `vectors` vectors of kWidth elements that fit in the
/// registers of a block: up to 1024 vectors, or 2048.
template <int kSums, class T, int kWidth, class Body>
cudaError_t with_bwd_layout(int64_t vectors, Body&& body) {
  constexpr int kMost = kSums * kWidth > 8 ? 4 : 8;
  if (vectors <= kWarp) return body.template operator()<BwdLayout<kSums, T, kWidth, kWarp, 1>>();
  if (vectors <= 3 * kWarp) return body.template operator()<BwdLayout<kSums, T, kWidth, kWarp, 3>>();
  if (vectors <= 4 * kWarp) return body.template operator()<BwdLayout<kSums, T, kWidth, kWarp, 4>>();
  if (vectors <= kMost * kWarp) return body.template operator()<BwdLayout<kSums, T, kWidth, kWarp, kMost>>();
  if (vectors <= kMost * kThreads)
    return body.template operator()<BwdLayout<kSums, T, kWidth, kThreads, kMost>>();
  return cudaErrorNotSupported;
}

struct NormBwdViews {
  const TensorView &dy, &x, &weight, &mean, &rstd, &dresidual, &dx;
};

/// Sums of pieces of the rows; those of the bias null where there is none.
template <class Acc>
struct Partials {
  Acc *weight, *bias;
  RowPieces pieces;
};

/// Writes dx and the partial sums.
template <bool kCentred, class T, class Acc = Accumulator<T>>
cudaError_t differentiate(const CudaContext& context, const NormBwdViews& views,
                          const Partials<Acc>& partials) {
  const int64_t cols = views.x.cols();
  const NormBwd<T> norm = {views.dy.as<const T>(),
                           views.x.as<const T>(),
                           views.weight.as<const T>(),
                           views.mean.as<const Acc>(),
                           views.rstd.as<const Acc>(),
                           views.dresidual.as<const T>(),
                           views.dx.as<T>(),
                           partials.weight,
                           partials.bias,
                           views.x.rows(),
                           partials.pieces.rows,
                           static_cast<int>(cols)};
  TensorView weight_sums, bias_sums;  // where they lie
  weight_sums.data = partials.weight;
  bias_sums.data = partials.bias;
  return with_width<T>(
      cols, {&views.dy, &views.x, &views.weight, &views.dresidual, &views.dx, &weight_sums, &bias_sums},
      [&]<int kWidth>() {
        constexpr int kSums = kCentred ? 2 : 1;
        return with_bwd_layout<kSums, T, kWidth>(cols / kWidth, [&]<class Layout>() {
          return launch(context, norm_bwd_kernel<kCentred, T, kWidth, Layout>, partials.pieces.count,
                        Layout::kBlock, norm);
        });
      });
}

/// The gradient of a parameter, and whether what is there stays a part of it.
struct ParameterGradient {
  const TensorView& sum;
  bool accumulates;
};

/// Both launches; `bias.sum` is absent where there is none. Takes the workspace of column_partials, for
/// LayerNorm twice.
template <bool kCentred>
cudaError_t run_norm_bwd(const CudaContext& context, const NormBwdViews& views,
                         const ParameterGradient& weight, const ParameterGradient& bias,
                         const TensorView& workspace) {
  const int64_t cols = views.x.cols();
  return with_type(views.x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const RowPieces pieces = column_pieces(views.x.rows(), sizeof(Acc));
    Acc* const sums = workspace.as<Acc>();
    const Partials<Acc> partials = {sums, bias.sum.present() ? sums + pieces.count * cols : nullptr, pieces};
    const cudaError_t status = differentiate<kCentred, T>(context, views, partials);
    if (status != cudaSuccess) return status;
    return with_gradient_type<T>(weight.sum.dtype, [&]<class Grad>() {
      using Sum = ColumnSum<Acc, Grad>;
      const auto sum = [&](const Acc* of, const ParameterGradient& gradient) {
        return Sum{of, gradient.sum.as<Grad>(), gradient.accumulates, static_cast<int>(pieces.count),
                   static_cast<int>(cols)};
      };
      const std::array<Sum, 2> jobs = {sum(partials.weight, weight), sum(partials.bias, bias)};
      return sum_columns<2>(context, std::span<const Sum>(jobs).first(bias.sum.present() ? 2 : 1));
    });
  });
}

/// Sums that one launch makes.
constexpr size_t kMostSums = 64;

/// Those of calls of norm_bwd_sum of the types of the first.
cudaError_t sum_partials(std::span<const KeyedCall> calls, const CudaContext& context) {
  const KernelCall& first = *calls[0].call;
  return with_accumulator_type(first.inputs[0].dtype, [&]<class Acc>() {
    return with_type(first.outputs[0].dtype, [&]<class Grad>() -> cudaError_t {
      if constexpr (!std::is_same_v<Accumulator<Grad>, Acc>) {
        return cudaErrorNotSupported;
      } else {
        using Sum = ColumnSum<Acc, Grad>;
        std::array<Sum, kMostSums> jobs = {};
        for (size_t i = 0; i < calls.size(); ++i) {
          const TensorView &partials = calls[i].call->inputs[0], &previous = calls[i].call->inputs[1];
          jobs[i] = {partials.as<const Acc>(), calls[i].call->outputs[0].as<Grad>(), previous.present(),
                     static_cast<int>(partials.rows()), static_cast<int>(partials.cols())};
        }
        return sum_columns<kMostSums>(context, std::span<const Sum>(jobs).first(calls.size()));
      }
    });
  });
}

}  // namespace

cudaError_t rmsnorm_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView absent;
  return run_norm_bwd<false>(context,
                             {.dy = call.inputs[0],
                              .x = call.inputs[1],
                              .weight = call.inputs[2],
                              .mean = absent,
                              .rstd = call.inputs[3],
                              .dresidual = call.inputs[5],
                              .dx = call.outputs[0]},
                             {call.outputs[1], call.inputs[4].present()}, {absent, false}, call.workspace);
}

cudaError_t layernorm_bwd(const KernelCall& call, const CudaContext& context) {
  return run_norm_bwd<true>(context,
                            {.dy = call.inputs[0],
                             .x = call.inputs[1],
                             .weight = call.inputs[2],
                             .mean = call.inputs[3],
                             .rstd = call.inputs[4],
                             .dresidual = call.inputs[7],
                             .dx = call.outputs[0]},
                            {call.outputs[1], call.inputs[5].present()},
                            {call.outputs[2], call.inputs[6].present()}, call.workspace);
}

cudaError_t norm_bwd_parameters_in_pieces(const KernelCall& call, const CudaContext& context) {
  const TensorView absent;
  const NormBwdViews views = {.dy = call.inputs[0],
                              .x = call.inputs[1],
                              .weight = absent,
                              .mean = call.inputs[2],
                              .rstd = call.inputs[3],
                              .dresidual = absent,
                              .dx = absent};
  const auto run = views.mean.present() ? run_norm_bwd<true> : run_norm_bwd<false>;
  return run(context, views, {call.outputs[0], call.inputs[4].present()},
             {call.outputs[1], call.inputs[5].present()}, call.workspace);
}

cudaError_t norm_bwd_partials(const KernelCall& call, const CudaContext& context) {
  const TensorView &dweight = call.outputs[1], &dbias = call.outputs[2];
  const NormBwdViews views = {.dy = call.inputs[0],
                              .x = call.inputs[1],
                              .weight = call.inputs[2],
                              .mean = call.inputs[3],
                              .rstd = call.inputs[4],
                              .dresidual = call.inputs[5],
                              .dx = call.outputs[0]};
  return with_type(views.x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const RowPieces pieces = {dweight.rows(), ceil_div(views.x.rows(), dweight.rows())};
    const Partials<Acc> partials = {dweight.as<Acc>(), dbias.as<Acc>(), pieces};
    return views.mean.present() ? differentiate<true, T>(context, views, partials)
                                : differentiate<false, T>(context, views, partials);
  });
}

cudaError_t norm_bwd_sum(const KernelCall& call, const CudaContext& context) {
  const KeyedCall one = {"norm_bwd_sum", &call};
  return sum_partials({&one, 1}, context);
}

CallRun norm_sums_run(std::span<const KeyedCall> sequence, const CudaContext&) {
  if (!begins_with(sequence, {"norm_bwd_sum", "norm_bwd_sum"})) return {};
  const KernelCall& first = *sequence[0].call;
  const auto joins = [&](size_t count) {
    const KernelCall& next = *sequence[count].call;
    const KernelCall before = operands_of(sequence.first(count));
    return sequence[count].key == "norm_bwd_sum" && next.inputs[0].dtype == first.inputs[0].dtype &&
           next.outputs[0].dtype == first.outputs[0].dtype && !overlap(next.outputs, before.inputs) &&
           !overlap(next.outputs, before.outputs) && !overlap(next.inputs, before.outputs);
  };
  size_t count = 1;
  while (count < std::min(sequence.size(), kMostSums) && joins(count)) ++count;
  if (count == 1) return {};
  return {count, {{sum_partials, operands_of(sequence.first(count))}}};
}

}  // namespace moec::cuda
