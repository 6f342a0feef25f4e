// RMSNorm and LayerNorm over the last dimension D, backward. Two launches: the first writes dx and, per piece
// of the rows, the sums of the parameters' gradients; the second adds these sums in order.
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/norm_bwd.h"
#include "kernels/cuda/reduce.cuh"

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
  Acc* bias_partials;    // likewise, for LayerNorm only
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
  constexpr int kRound = std::clamp(48 * 1024 / kVectorBytes, 1, Layout::kVectors);  // vectors of a thread
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
  if constexpr (kCentred)
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
  const TensorView &dy, &x, &weight, &mean, &rstd, &dweight_prev, &dbias_prev, &dresidual, &dx, &dweight,
      &dbias, &workspace;
};

template <bool kCentred>
cudaError_t run_norm_bwd(const CudaContext& context, const NormBwdViews& views) {
  const int64_t rows = views.x.rows(), cols = views.x.cols();
  return with_type(views.x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const RowPieces pieces = row_pieces<Acc>(rows);
    Acc* weight_partials = views.workspace.as<Acc>();
    Acc* bias_partials = weight_partials + pieces.count * cols;
    const NormBwd<T> norm = {views.dy.as<const T>(),
                             views.x.as<const T>(),
                             views.weight.as<const T>(),
                             views.mean.as<const Acc>(),
                             views.rstd.as<const Acc>(),
                             views.dresidual.as<const T>(),
                             views.dx.as<T>(),
                             weight_partials,
                             bias_partials,
                             rows,
                             pieces.rows,
                             static_cast<int>(cols)};
    const cudaError_t status = with_width<T>(
        cols, {&views.dy, &views.x, &views.weight, &views.dresidual, &views.dx}, [&]<int kWidth>() {
          constexpr int kSums = kCentred ? 2 : 1;
          return with_bwd_layout<kSums, T, kWidth>(cols / kWidth, [&]<class Layout>() {
            return launch(context, norm_bwd_kernel<kCentred, T, kWidth, Layout>, pieces.count, Layout::kBlock,
                          norm);
          });
        });
    if (status != cudaSuccess) return status;
    return with_gradient_type<T>(views.dweight.dtype, [&]<class Grad>() {
      using Sum = ColumnSum<Acc, Grad>;
      return sum_columns(
          context, Sum{weight_partials, views.dweight.as<Grad>(), views.dweight_prev.present()},
          Sum{bias_partials, views.dbias.as<Grad>(), views.dbias_prev.present()}, pieces.count, cols);
    });
  });
}

}  // namespace

cudaError_t rmsnorm_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView absent;
  return run_norm_bwd<false>(context, {.dy = call.inputs[0],
                                       .x = call.inputs[1],
                                       .weight = call.inputs[2],
                                       .mean = absent,
                                       .rstd = call.inputs[3],
                                       .dweight_prev = call.inputs[4],
                                       .dbias_prev = absent,
                                       .dresidual = call.inputs[5],
                                       .dx = call.outputs[0],
                                       .dweight = call.outputs[1],
                                       .dbias = absent,
                                       .workspace = call.workspace});
}

cudaError_t layernorm_bwd(const KernelCall& call, const CudaContext& context) {
  return run_norm_bwd<true>(context, {.dy = call.inputs[0],
                                      .x = call.inputs[1],
                                      .weight = call.inputs[2],
                                      .mean = call.inputs[3],
                                      .rstd = call.inputs[4],
                                      .dweight_prev = call.inputs[5],
                                      .dbias_prev = call.inputs[6],
                                      .dresidual = call.inputs[7],
                                      .dx = call.outputs[0],
                                      .dweight = call.outputs[1],
                                      .dbias = call.outputs[2],
                                      .workspace = call.workspace});
}

cudaError_t norm_bwd_parameters_in_pieces(const KernelCall& call, const CudaContext& context) {
  const TensorView absent;
  const NormBwdViews views = {.dy = call.inputs[0],
                              .x = call.inputs[1],
                              .weight = absent,
                              .mean = call.inputs[2],
                              .rstd = call.inputs[3],
                              .dweight_prev = call.inputs[4],
                              .dbias_prev = call.inputs[5],
                              .dresidual = absent,
                              .dx = absent,
                              .dweight = call.outputs[0],
                              .dbias = call.outputs[1],
                              .workspace = call.workspace};
  return views.mean.present() ? run_norm_bwd<true>(context, views) : run_norm_bwd<false>(context, views);
}

}  // namespace moec::cuda
