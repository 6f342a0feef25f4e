// What kernels over the rows of a matrix share: the split of the work, reductions of rows and of columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/types.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/workspace.h"

namespace moec::cpu {

/// Elements of a piece of work: long enough to hide the cost of handing it out, short enough for the L2
/// cache.
constexpr int64_t kPieceElements = 16384;

/// Calls body(row) for every row in [0, rows).
template <class Body>
void parallel_rows(int64_t rows, int64_t cols, Body&& body) {
  const int64_t grain = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, cols));
  parallel_ranges(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

/// Calls body(piece, begin, end) for at most kColumnPartials pieces of [0, rows) and returns their number.
template <class Body>
int64_t for_column_partials(int64_t rows, Body&& body) {
  const RowPieces pieces = row_pieces(rows, kColumnPartials);
  parallel_ranges(rows, pieces.rows,
                  [&](int64_t begin, int64_t end) { body(begin / pieces.rows, begin, end); });
  return pieces.count;
}

/// out[cols] = (accumulate ? out : 0) + the sum over pieces, in order, of partials[pieces, cols]. `out` is of
/// any float type.
template <class Acc>
void sum_column_partials(const Acc* partials, int64_t pieces, const TensorView& out, bool accumulate) {
  constexpr int64_t kColumns = 256;
  const int64_t cols = out.elements();
  dispatch(out.dtype, [&]<class Out>() {
    parallel_ranges(cols, kColumns, [&](int64_t begin, int64_t end) {
      Acc sums[kColumns] = {};
      const int64_t n = end - begin;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const Acc* row = partials + piece * cols + begin;
        for (int64_t i = 0; i < n; ++i) sums[i] += row[i];
      }
      Out* y = out.as<Out>() + begin;
      for (int64_t i = 0; i < n; ++i) {
        const Acc before = accumulate ? static_cast<Acc>(y[i]) : Acc{0};
        y[i] = static_cast<Out>(static_cast<Accumulator<Out>>(before + sums[i]));
      }
    });
  });
}

template <class Acc>
struct SoftmaxStats {
  Acc max;  // largest element
  Acc sum;  // of exp(x - max)
};

/// Reads the row from memory once: its maximum grows block by block and the sum follows. -inf counts as
/// probability zero; a NaN or +inf makes the sum NaN.
template <class T>
SoftmaxStats<Accumulator<T>> softmax_stats(const T* x, int64_t n) {
  using Acc = Accumulator<T>;
  constexpr int64_t kBlock = 1024;
  SoftmaxStats<Acc> stats{std::numeric_limits<Acc>::lowest(), 0};
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    Acc max = stats.max;
#pragma omp simd reduction(max : max)
    for (int64_t i = begin; i < end; ++i) max = std::max(max, static_cast<Acc>(x[i]));
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += exp_fast(static_cast<Acc>(x[i]) - max);
    stats = {max, stats.sum * exp_fast(stats.max - max) + sum};
  }
  return stats;
}

/// The only element of a loss or another statistic, and the way to write one.
inline double read_scalar(const TensorView& x) {
  return x.dtype == fb::DType::F64 ? *x.as<const double>() : static_cast<double>(*x.as<const float>());
}
inline void write_scalar(const TensorView& y, double value) {
  if (y.dtype == fb::DType::F64)
    *y.as<double>() = value;
  else
    *y.as<float>() = static_cast<float>(value);
}

}  // namespace moec::cpu
