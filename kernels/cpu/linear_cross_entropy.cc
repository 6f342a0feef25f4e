// The cross-entropy of a linear layer's output, and its gradients, without ever holding all logits.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

/// The loss of a row, whose logits become factor * (softmax - one at the target). Rows without a target have
/// none.
template <class T, class Acc = Accumulator<T>>
double row_loss(T* logits, int64_t n, int32_t target, Acc factor) {
  if (target < 0) {
    std::fill_n(logits, n, T(0));
    return 0;
  }
  const auto stats = softmax_stats(logits, n);
  const Acc lse = stats.max + std::log(stats.sum);
  const Acc distance = static_cast<Acc>(logits[target]) - lse;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i)
    logits[i] = static_cast<T>(factor * exp_fast(static_cast<Acc>(logits[i]) - lse));
  logits[target] = static_cast<T>(factor * std::expm1(distance));
  return static_cast<double>(-distance);
}

}  // namespace

void linear_cross_entropy(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &weight = call.inputs[1], &dloss = call.inputs[3];
  const TensorView &dx = call.outputs[1], &dweight = call.outputs[2];
  const auto* targets = call.inputs[2].as<const int32_t>();
  const LogitsChunks chunks = logits_chunks(call);
  auto* workspace = call.workspace.as<std::byte>();
  auto* losses = call.workspace.as<double>();
  std::byte* chunk_logits = workspace + chunks.logits_offset;
  const int64_t rows = x.rows(), in = x.cols(), out = weight.rows();
  const int64_t valid = std::count_if(targets, targets + rows, [](int32_t target) { return target >= 0; });
  const double factor =
      dloss.present() ? read_scalar(dloss) / static_cast<double>(std::max<int64_t>(1, valid)) : 0;
  Matrix sums = as_matrix(dweight);
  if (chunks.sums) sums = {workspace + chunks.sums_offset, fb::DType::F32, out, in, in};

  for (int64_t begin = 0; begin < rows; begin += chunks.rows) {
    const int64_t count = std::min(chunks.rows, rows - begin);
    const Matrix x_chunk = as_matrix(x).block(begin, 0, count, in);
    const Matrix logits = {chunk_logits, x.dtype, count, out, chunks.stride};
    multiply({.a = x_chunk, .b = as_matrix(weight).t(), .c = logits});
    dispatch(x.dtype, [&]<class T>() {
      parallel_rows(count, out, [&](int64_t row) {
        T* row_logits = reinterpret_cast<T*>(chunk_logits) + row * chunks.stride;
        losses[begin + row] =
            row_loss<T>(row_logits, out, targets[begin + row], static_cast<Accumulator<T>>(factor));
      });
    });
    if (!dloss.present()) continue;
    const bool first_sum = begin == 0 && (chunks.sums || !call.inputs[4].present());
    multiply({.a = logits.t(), .b = x_chunk, .c = sums, .accumulate = !first_sum});
    // Last, because it may lie over x.
    multiply({.a = logits, .b = as_matrix(weight), .c = as_matrix(dx).block(begin, 0, count, in)});
  }
  if (chunks.sums)
    sum_column_partials(static_cast<const float*>(sums.data), 1, dweight, call.inputs[4].present());
  double loss = 0;
  for (int64_t row = 0; row < rows; ++row) loss += losses[row];
  write_scalar(call.outputs[0], valid == 0 ? 0 : loss / static_cast<double>(valid));
}

}  // namespace moec::cpu
