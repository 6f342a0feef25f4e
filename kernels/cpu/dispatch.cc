// Moving token rows to their experts and back. An assignment is token * k + j; a slot is its place in the
// order sorted by expert. permutation: slot -> assignment, inverse: assignment -> slot. Only the R = T * k
// slots of the permutation are read or written, never the padding behind them.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

/// Turns counts[blocks, experts] into the slot of each block's first assignment to each expert, and writes
/// offsets.
void scan_counts(int32_t* counts, int64_t blocks, int64_t experts, int32_t* offsets) {
  int32_t slot = 0;
  for (int64_t e = 0; e < experts; ++e) {
    offsets[e] = slot;
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t count = counts[b * experts + e];
      counts[b * experts + e] = slot;
      slot += count;
    }
  }
  offsets[experts] = slot;
}

/// y[t] = residual[t] + sum_j weight(t*k + j) * rows[inverse[t,j]], in this order; y may be the residual.
template <class T, class Weight>
void gather_rows(const TensorView& rows, const TensorView& inverse, const TensorView& residual,
                 const TensorView& y, Weight weight) {
  using Acc = Accumulator<T>;
  constexpr int64_t kCols = 256;
  const int64_t dim = y.cols(), k = inverse.elements() / y.rows();
  parallel_rows(y.rows(), dim * k, [&](int64_t t) {
    for (int64_t begin = 0; begin < dim; begin += kCols) {
      const int64_t n = std::min(kCols, dim - begin);
      Acc sums[kCols] = {};
      if (residual.present()) std::copy_n(residual.as<const T>() + t * dim + begin, n, sums);
      for (int64_t a = t * k; a < (t + 1) * k; ++a) {
        const T* row = rows.as<const T>() + inverse.as<const int32_t>()[a] * dim + begin;
        const Acc factor = weight(a);
        for (int64_t i = 0; i < n; ++i) sums[i] += factor * static_cast<Acc>(row[i]);
      }
      T* out = y.as<T>() + t * dim + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(sums[i]);
    }
  });
}

/// Writes drow = weight * dy, which may be the row, and returns the dot product of dy and the row.
template <class T, class Acc = Accumulator<T>>
Acc combine_bwd_row(const T* dy, const T* row, Acc weight, T* drow, int64_t n) {
  Acc dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i) dot += static_cast<Acc>(dy[i]) * static_cast<Acc>(row[i]);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) drow[i] = static_cast<T>(weight * static_cast<Acc>(dy[i]));
  return dot;
}

}  // namespace

void expert_index(const KernelCall& call) {
  const int32_t* experts = call.inputs[0].as<const int32_t>();
  const int64_t assignments = call.inputs[0].elements(), n = call.outputs[0].elements() - 1;
  int32_t* counts = call.workspace.as<int32_t>();
  parallel_ranges(assignments, kExpertIndexBlock, [&](int64_t begin, int64_t end) {
    int32_t* count = counts + begin / kExpertIndexBlock * n;
    std::fill_n(count, n, 0);
    for (int64_t a = begin; a < end; ++a) ++count[experts[a]];
  });
  const int64_t blocks = (assignments + kExpertIndexBlock - 1) / kExpertIndexBlock;
  scan_counts(counts, blocks, n, call.outputs[0].as<int32_t>());
  parallel_ranges(assignments, kExpertIndexBlock, [&](int64_t begin, int64_t end) {
    int32_t* next = counts + begin / kExpertIndexBlock * n;
    for (int64_t a = begin; a < end; ++a) {
      const int32_t slot = next[experts[a]]++;
      call.outputs[1].as<int32_t>()[slot] = static_cast<int32_t>(a);
      call.outputs[2].as<int32_t>()[a] = slot;
    }
  });
}

void dispatch(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &permutation = call.inputs[1], &rows = call.outputs[0];
  const int64_t slots = permutation.elements(), k = slots / x.rows();
  const int64_t row_bytes = x.cols() * dtype_size(x.dtype);
  parallel_rows(slots, x.cols(), [&](int64_t slot) {
    std::memcpy(rows.as<char>() + slot * row_bytes,
                x.as<char>() + permutation.as<const int32_t>()[slot] / k * row_bytes,
                static_cast<size_t>(row_bytes));
  });
}

void dispatch_bwd(const KernelCall& call) {
  const TensorView &drows = call.inputs[0], &inverse = call.inputs[1];
  dispatch(drows.dtype, [&]<class T>() {
    gather_rows<T>(drows, inverse, call.inputs[2], call.outputs[0],
                   [](int64_t) { return Accumulator<T>{1}; });
  });
}

void combine(const KernelCall& call) {
  const TensorView &rows = call.inputs[0], &inverse = call.inputs[2];
  dispatch(rows.dtype, [&]<class T>() {
    const auto* weights = call.inputs[1].as<const Accumulator<T>>();
    gather_rows<T>(rows, inverse, call.inputs[4], call.outputs[0],
                   [weights](int64_t a) { return weights[a]; });
  });
}

void combine_bwd(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &rows = call.inputs[1], &permutation = call.inputs[4];
  const int64_t dim = dy.cols(), slots = permutation.elements(), k = slots / dy.rows();
  dispatch(rows.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    parallel_rows(slots, dim, [&](int64_t slot) {
      const int64_t a = permutation.as<const int32_t>()[slot];
      call.outputs[1].as<Acc>()[a] =
          combine_bwd_row(dy.as<const T>() + a / k * dim, rows.as<const T>() + slot * dim,
                          call.inputs[2].as<const Acc>()[a], call.outputs[0].as<T>() + slot * dim, dim);
    });
  });
}

}  // namespace moec::cpu
