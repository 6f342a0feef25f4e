// Matrix products of the CPU device. The tiles of an output, whose size depends on the shapes alone, are
// shared out among our threads, so results do not depend on how many there are. Tiles are computed by the
// kernels of gemm_panel.h, small products by OpenBLAS on the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/kernel.h"

namespace moec::cpu {

/// A matrix in memory, not owned: of any float type. Element (i, j) is at data[i * stride + j], or at
/// data[j * stride + i] when transposed.
struct Matrix {
  void* data = nullptr;
  fb::DType dtype = fb::DType::F32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  bool transposed = false;

  Matrix t() const { return {data, dtype, cols, rows, stride, !transposed}; }

  /// The `row_count` x `col_count` elements from (row, col) on.
  Matrix block(int64_t row, int64_t col, int64_t row_count, int64_t col_count) const {
    const int64_t offset = transposed ? col * stride + row : row * stride + col;
    return {static_cast<std::byte*>(data) + offset * dtype_size(dtype),
            dtype,
            row_count,
            col_count,
            stride,
            transposed};
  }
};

/// The last dimension of `tensor` as columns, all others as rows; an absent tensor is a matrix without data.
inline Matrix as_matrix(const TensorView& tensor) {
  return {tensor.data, tensor.dtype, tensor.rows(), tensor.cols(), tensor.cols()};
}

/// Copies `source` to the equally large `target`, converting between types; neither is transposed.
void copy(const Matrix& source, const Matrix& target);

/// `source` in the type it is computed in: itself when it is stored so, otherwise a copy in `scratch`, which
/// has room for all its elements.
Matrix load(const Matrix& source, float* scratch);

/// c = alpha a b + beta c on the calling thread; a[m,k], b[k,n], c[m,n] are all F32 or all F64, c not
/// transposed. With beta = 0 the old contents of c are not read.
void gemm(double alpha, const Matrix& a, const Matrix& b, double beta, const Matrix& c);

/// c[m,n] = a[m,k] b[k,n], plus `bias` (a row of n) in every row if it has data, plus the old c if
/// `accumulate`; not both. Operands may be F32, BF16 or F16 in any mixture (sums are F32), or all F64; c is
/// not transposed.
struct Product {
  Matrix a;
  Matrix b;
  Matrix c;
  Matrix bias = {};
  bool accumulate = false;
};

/// Computes independent products with all threads.
void multiply(std::span<const Product> products);
inline void multiply(const Product& product) { multiply(std::span(&product, 1)); }

}  // namespace moec::cpu
