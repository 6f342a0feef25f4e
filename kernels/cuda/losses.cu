// Cross-entropy and the router's auxiliary losses. A loss is one number of the accumulation type: a first
// launch writes the terms of rows or of pieces of rows, a second one adds them in order.
#include <cmath>

#include "kernels/cuda/aux_loss.cuh"
#include "kernels/cuda/call_run.h"
#include "kernels/cuda/softmax_stats.cuh"
#include "kernels/train_state.h"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

/// Number of targets that count, for all threads of a block of kThreads.
__device__ int count_valid(const int32_t* targets, int64_t rows) {
  int valid = 0;
#pragma unroll 8
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) valid += targets[row] >= 0;
  return group_reduce<kThreads>(valid);
}

/// Reads every logit once.
template <class T, int kWidth, int kGroup>
__global__ void cross_entropy_kernel(const T* logits, const int32_t* targets, Accumulator<T>* lse,
                                     double* row_losses, int64_t rows, int cols) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t row = group_row<kGroup>();
  if (row >= rows) return;
  const T* x = logits + row * cols;
  const SoftmaxStats<Acc> stats = softmax_stats<kWidth, kGroup>(x, cols / kWidth);
  if (group_lane<kGroup>() > 0) return;
  const int32_t target = targets[row];
  const Acc row_lse = stats.max + std::log(stats.sum);
  lse[row] = row_lse;
  row_losses[row] = target < 0 ? 0 : static_cast<double>(row_lse - static_cast<Acc>(x[target]));
}

/// loss = factor * the mean of terms[rows], or with `targets` their sum over the number of valid targets. One
/// block.
__global__ void mean_kernel(const double* terms, const int32_t* targets, int64_t rows, double factor,
                            Scalar loss) {
  begin_kernel();
  double sum = 0;
#pragma unroll 8
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) sum += terms[row];
  sum = group_reduce<kThreads>(sum);
  const int64_t count = targets ? count_valid(targets, rows) : rows;
  if (threadIdx.x == 0) loss.write(count == 0 ? 0 : factor * sum / static_cast<double>(count));
}

template <class T>
struct CrossEntropyBwd {
  Scalar dloss;
  const T* logits;
  const int32_t* targets;
  const Accumulator<T>* lse;  // null where it is not known yet
  T* dlogits;                 // may be the logits
  int64_t rows;
  int cols;
};

/// factor * (softmax - one at the target) of a row's vector number `i`.
template <int kWidth, class T, class Acc = Accumulator<T>>
__device__ Vector<T, kWidth> gradient_of(const Vector<T, kWidth>& logits, int i, int32_t target, Acc lse,
                                         Acc factor) {
  Vector<T, kWidth> out;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const Acc distance = static_cast<Acc>(logits.value[j]) - lse;
    const Acc gradient = i * kWidth + j == target ? std::expm1(distance) : exponential<T>(distance);
    out.value[j] = to_storage<T>(factor * gradient);
  }
  return out;
}

/// dlogits = dloss / valid targets * (softmax - one at the target); rows without a target get zeros. Reads
/// and writes every element once. Each block counts the targets for itself.
template <class T, int kWidth, int kGroup>
__global__ void __launch_bounds__(kThreads) cross_entropy_bwd_kernel(const CrossEntropyBwd<T> bwd) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int valid = count_valid(bwd.targets, bwd.rows);
  const auto factor = static_cast<Acc>(bwd.dloss.read() / max(1, valid));
  const int64_t groups = int64_t{gridDim.x} * (kThreads / kGroup);
  for (int64_t row = group_row<kGroup>(); row < bwd.rows; row += groups) {
    const int32_t target = bwd.targets[row];
    const Acc lse = bwd.lse[row];
    const T* x = bwd.logits + row * bwd.cols;
    T* dx = bwd.dlogits + row * bwd.cols;
    for (int i = group_lane<kGroup>(); i < bwd.cols / kWidth; i += kGroup) {
      Vector<T, kWidth> out = {};
      if (target >= 0) out = gradient_of(load<kWidth>(x, i), i, target, lse, factor);
      store(dx, i, out);
    }
  }
}

/// Where a launch computes seed_gradient, too.
struct GradientSeed {
  const TrainState* state = nullptr;  // null where dloss is there
  double grad_accum = 1;

  /// dloss as it is stored, by one thread.
  __device__ double seed(const Scalar& dloss) const {
    if (state == nullptr) return dloss.read();
    const double value = state->loss_scale / grad_accum;
    if (global_thread() == 0) dloss.write(value);
    return dloss.is_double ? value : static_cast<float>(value);
  }
};

/// The same with the losses of rows, from logits alone: what of a row is not held is read again from the
/// cache. The thread that has a row's target writes its loss.
template <class T, int kWidth, int kGroup>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_gradient_kernel(const CrossEntropyBwd<T> bwd, const GradientSeed seed, double* row_losses) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int valid = count_valid(bwd.targets, bwd.rows);
  const auto factor = static_cast<Acc>(seed.seed(bwd.dloss) / max(1, valid));
  const int64_t groups = int64_t{gridDim.x} * (kThreads / kGroup);
  for (int64_t row = group_row<kGroup>(); row < bwd.rows; row += groups) {
    const int32_t target = bwd.targets[row];
    const T* x = bwd.logits + row * bwd.cols;
    T* dx = bwd.dlogits + row * bwd.cols;
    const auto held = hold_places<kGroup>(bwd.cols / kWidth, [x](int64_t i) { return load<kWidth>(x, i); });
    SoftmaxStats<Acc> stats = {std::numeric_limits<Acc>::lowest(), 0};
    held.for_each([&](int64_t, const Vector<T, kWidth>& v) { add_to_stats(stats, v); });
    stats = group_reduce<kGroup>(stats, MergeStats<T>{});
    const Acc lse = stats.max + std::log(stats.sum);
    if (target < 0 && group_lane<kGroup>() == 0) row_losses[row] = 0;
    held.for_each([&](int64_t place, const Vector<T, kWidth>& v) {
      const int i = static_cast<int>(place);
      if (target >= 0 && target / kWidth == i) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          if (i * kWidth + j == target)
            row_losses[row] = static_cast<double>(lse - static_cast<Acc>(v.value[j]));
      }
      store(dx, i, target >= 0 ? gradient_of(v, i, target, lse, factor) : Vector<T, kWidth>{});
    });
  }
}

/// sums[pieces, experts] = the probabilities of each expert, added up over a piece of the tokens. A block per
/// piece; a warp takes one expert at a time.
template <class T>
__global__ void sum_probs_kernel(const T* probs, double* sums, int64_t tokens, int64_t piece_tokens,
                                 int experts) {
  begin_kernel();
  const int64_t begin = blockIdx.x * piece_tokens, end = min(tokens, begin + piece_tokens);
  for (int e = threadIdx.x / kWarp; e < experts; e += kThreads / kWarp) {
    double sum = 0;
#pragma unroll 4
    for (int64_t token = begin + group_lane<kWarp>(); token < end; token += kWarp)
      sum += static_cast<double>(probs[token * experts + e]);
    sum = group_reduce<kWarp>(sum);
    if (group_lane<kWarp>() == 0) sums[int64_t{blockIdx.x} * experts + e] = sum;
  }
}

/// One block.
__global__ void aux_loss_kernel(const double* sums, int pieces, AuxLossFactor factor, Scalar loss) {
  begin_kernel();
  double total = 0;
  for (int e = threadIdx.x / kWarp; e < factor.experts; e += kThreads / kWarp) {
    double prob = 0;
    for (int piece = group_lane<kWarp>(); piece < pieces; piece += kWarp)
      prob += sums[piece * factor.experts + e];
    total += factor.count(e) * (prob / static_cast<double>(factor.tokens));
  }
  total = group_reduce<kThreads>(total);
  if (threadIdx.x == 0) loss.write(factor.value() * total);
}

template <class T>
__global__ void aux_loss_bwd_kernel(const AuxLossGradient gradient, T* dprobs) {
  begin_kernel();
  const int64_t i = global_thread();
  const int experts = gradient.factor.experts;
  if (i >= gradient.factor.tokens * experts) return;
  dprobs[i] =
      static_cast<T>(gradient.scale()) * static_cast<T>(gradient.factor.count(static_cast<int>(i % experts)));
}

/// A warp per row of logits of the accumulation type.
template <class T>
__global__ void squared_lse_kernel(const T* logits, double* squares, int64_t rows, int cols) {
  begin_kernel();
  const int64_t row = group_row<kWarp>();
  if (row >= rows) return;
  const SoftmaxStats<T> stats = softmax_stats<1, kWarp>(logits + row * cols, cols);
  const double lse = stats.max + std::log(stats.sum);
  if (group_lane<kWarp>() == 0) squares[row] = lse * lse;
}

/// dlogits, which may be the logits, = factor * dloss * lse * softmax.
template <class T>
__global__ void router_z_loss_bwd_kernel(Scalar dloss, const T* logits, T* dlogits, int64_t rows, int cols,
                                         double factor) {
  begin_kernel();
  const int64_t row = group_row<kWarp>();
  if (row >= rows) return;
  const T* x = logits + row * cols;
  const SoftmaxStats<T> stats = softmax_stats<1, kWarp>(x, cols);
  const T lse = stats.max + std::log(stats.sum);
  const T scale = static_cast<T>(factor * dloss.read()) * lse;
  for (int e = group_lane<kWarp>(); e < cols; e += kWarp)
    dlogits[row * cols + e] = scale * exponential<T>(x[e] - lse);
}

/// The gradient of cross_entropy_gradient, and the losses of its rows.
cudaError_t enqueue_rows(const KernelCall& call, const GradientSeed& seed, const CudaContext& context) {
  const TensorView &logits = call.inputs[0], &targets = call.inputs[1], &dlogits = call.outputs[1];
  const int64_t most_blocks = int64_t{8} * context.sm_count;  // what can be resident, as above
  return with_type(logits.dtype, [&]<class T>() {
    const CrossEntropyBwd<T> bwd = {.dloss = Scalar(call.inputs[2]),
                                    .logits = logits.as<const T>(),
                                    .targets = targets.as<const int32_t>(),
                                    .lse = nullptr,
                                    .dlogits = dlogits.as<T>(),
                                    .rows = logits.rows(),
                                    .cols = static_cast<int>(logits.cols())};
    return with_row_layout<T>(bwd.cols, {&logits, &dlogits}, [&]<int kWidth, int kGroup>() {
      return launch(context, cross_entropy_gradient_kernel<T, kWidth, kGroup>,
                    std::min(most_blocks, group_blocks<kGroup>(bwd.rows)), kThreads, bwd, seed,
                    call.workspace.as<double>());
    });
  });
}

/// The loss of cross_entropy_gradient, from those of its rows.
cudaError_t enqueue_mean(const KernelCall& call, const CudaContext& context) {
  const TensorView &logits = call.inputs[0], &targets = call.inputs[1];
  return launch(context, mean_kernel, 1, kThreads, call.workspace.as<double>(), targets.as<const int32_t>(),
                logits.rows(), 1.0, Scalar(call.outputs[0]));
}

cudaError_t enqueue_rows_of_run(std::span<const KeyedCall> calls, const CudaContext& context) {
  GradientSeed seed;
  if (calls.size() > 1) {
    const KernelCall& first = *calls[0].call;
    seed = {.state = first.inputs[0].as<const TrainState>(),
            .grad_accum = static_cast<double>(first.attrs<fb::SeedGradientT>().grad_accum)};
  }
  return enqueue_rows(*calls.back().call, seed, context);
}

cudaError_t enqueue_mean_of_run(std::span<const KeyedCall> calls, const CudaContext& context) {
  return enqueue_mean(*calls.back().call, context);
}

}  // namespace

cudaError_t cross_entropy(const KernelCall& call, const CudaContext& context) {
  const TensorView &logits = call.inputs[0], &targets = call.inputs[1];
  const int64_t rows = logits.rows(), cols = logits.cols();
  auto* row_losses = call.workspace.as<double>();
  const cudaError_t status = with_type(logits.dtype, [&]<class T>() {
    return with_row_layout<T>(cols, {&logits}, [&]<int kWidth, int kGroup>() {
      return launch(context, cross_entropy_kernel<T, kWidth, kGroup>, group_blocks<kGroup>(rows), kThreads,
                    logits.as<const T>(), targets.as<const int32_t>(), call.outputs[1].as<Accumulator<T>>(),
                    row_losses, rows, static_cast<int>(cols));
    });
  });
  if (status != cudaSuccess) return status;
  return launch(context, mean_kernel, 1, kThreads, row_losses, targets.as<const int32_t>(), rows, 1.0,
                Scalar(call.outputs[0]));
}

cudaError_t cross_entropy_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &logits = call.inputs[1], &dlogits = call.outputs[0];
  const int64_t most_blocks =
      int64_t{8} * context.sm_count;  // what can be resident: each block counts the targets
  return with_type(logits.dtype, [&]<class T>() {
    const CrossEntropyBwd<T> bwd = {Scalar(call.inputs[0]),
                                    logits.as<const T>(),
                                    call.inputs[2].as<const int32_t>(),
                                    call.inputs[3].as<const Accumulator<T>>(),
                                    dlogits.as<T>(),
                                    logits.rows(),
                                    static_cast<int>(logits.cols())};
    return with_row_layout<T>(bwd.cols, {&logits, &dlogits}, [&]<int kWidth, int kGroup>() {
      return launch(context, cross_entropy_bwd_kernel<T, kWidth, kGroup>,
                    std::min(most_blocks, group_blocks<kGroup>(bwd.rows)), kThreads, bwd);
    });
  });
}

cudaError_t cross_entropy_gradient(const KernelCall& call, const CudaContext& context) {
  const cudaError_t status = enqueue_rows(call, GradientSeed{}, context);
  return status == cudaSuccess ? enqueue_mean(call, context) : status;
}

/// [seed_gradient], cross_entropy_gradient: the mean of the rows' losses need not come before what follows.
CallRun loss_run(std::span<const KeyedCall> sequence, const CudaContext&) {
  const size_t calls = begins_with(sequence, {"seed_gradient", "cross_entropy_gradient"}) ? 2
                       : begins_with(sequence, {"cross_entropy_gradient"})                ? 1
                                                                                          : 0;
  if (calls == 0) return {};
  const KernelCall& loss = *sequence[calls - 1].call;
  KernelCall rows = operands_of(sequence.first(calls)), mean;
  mean.inputs = {loss.workspace, loss.inputs[1]};
  mean.outputs = {loss.outputs[0]};
  std::erase_if(rows.outputs, [&](const TensorView& output) { return output.data == loss.outputs[0].data; });
  return {calls, {{enqueue_rows_of_run, std::move(rows)}, {enqueue_mean_of_run, std::move(mean)}}};
}

cudaError_t aux_loss(const KernelCall& call, const CudaContext& context) {
  const TensorView& probs = call.inputs[0];
  const int64_t tokens = probs.rows(), piece_tokens = std::max<int64_t>(1, ceil_div(tokens, kColumnPartials));
  const int64_t pieces = ceil_div(tokens, piece_tokens);
  auto* sums = call.workspace.as<double>();
  const AuxLossFactor factor(call.attrs<fb::AuxLossT>(), probs, call.inputs[1]);
  const cudaError_t status = with_accumulator_type(probs.dtype, [&]<class T>() {
    return launch(context, sum_probs_kernel<T>, pieces, kThreads, probs.as<const T>(), sums, tokens,
                  piece_tokens, factor.experts);
  });
  if (status != cudaSuccess) return status;
  return launch(context, aux_loss_kernel, 1, kThreads, sums, static_cast<int>(pieces), factor,
                Scalar(call.outputs[0]));
}

cudaError_t aux_loss_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView& probs = call.inputs[1];
  return with_accumulator_type(probs.dtype, [&]<class T>() {
    return launch(context, aux_loss_bwd_kernel<T>, ceil_div(probs.elements(), kThreads), kThreads,
                  AuxLossGradient(call), call.outputs[0].as<T>());
  });
}

cudaError_t router_z_loss(const KernelCall& call, const CudaContext& context) {
  const TensorView& logits = call.inputs[0];
  const int64_t rows = logits.rows();
  auto* squares = call.workspace.as<double>();
  const cudaError_t status = with_accumulator_type(logits.dtype, [&]<class T>() {
    return launch(context, squared_lse_kernel<T>, group_blocks<kWarp>(rows), kThreads, logits.as<const T>(),
                  squares, rows, static_cast<int>(logits.cols()));
  });
  if (status != cudaSuccess) return status;
  return launch(context, mean_kernel, 1, kThreads, squares, nullptr, rows,
                static_cast<double>(call.attrs<fb::RouterZLossT>().coefficient), Scalar(call.outputs[0]));
}

cudaError_t router_z_loss_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView& logits = call.inputs[1];
  const double factor = 2.0 * call.attrs<fb::RouterZLossT>().coefficient / static_cast<double>(logits.rows());
  return with_accumulator_type(logits.dtype, [&]<class T>() {
    return launch(context, router_z_loss_bwd_kernel<T>, group_blocks<kWarp>(logits.rows()), kThreads,
                  Scalar(call.inputs[0]), logits.as<const T>(), call.outputs[0].as<T>(), logits.rows(),
                  static_cast<int>(logits.cols()), factor);
  });
}

}  // namespace moec::cuda
