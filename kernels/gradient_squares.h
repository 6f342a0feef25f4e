// A kernel that writes a large gradient may sum its squares at once, so that grad_norm need not read it
// again.
#pragma once

#include <cstdint>
#include <vector>

namespace moec {

/// Squares are summed over pieces of this many rows and columns of an expert's gradient.
constexpr int64_t kSquaresRows = 16, kSquaresCols = 256;

/// The sums [E, pieces of rows, pieces of columns], f64, of a gradient [E, rows, cols].
inline std::vector<int64_t> squares_shape(int64_t experts, int64_t rows, int64_t cols) {
  return {experts, (rows + kSquaresRows - 1) / kSquaresRows, (cols + kSquaresCols - 1) / kSquaresCols};
}

}  // namespace moec
