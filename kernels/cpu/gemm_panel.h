// The innermost part of a matrix product: a few rows of the result times a panel, a strip of the right
// operand that is as wide as two vector registers. A panel that is not stored as it is needed is packed once
// and then meets all rows of a tile. Each element of the result is summed over k in order, wherever in a tile
// it lies.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

namespace moec::cpu {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kPanelRows = 8;  // with two vectors each: sums that fit the 32 registers and hide FMA latency
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kPanelRows = 6;  // the same for 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kPanelRows = 6;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
constexpr int kPanelCols = 2 * kLanes<T>;

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));

  static Vector load(const T* from) {
    Vector v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void store(Vector v, T* to) { std::memcpy(to, &v, sizeof(v)); }

  /// The first `count` elements, converted; zeros after them.
  template <class From>
  static Vector convert(const From* from, int64_t count) {
    Vector v = {};
    if (count >= kLanes<T>) {
      for (int lane = 0; lane < kLanes<T>; ++lane) v[lane] = static_cast<T>(from[lane]);
    } else {
      for (int lane = 0; lane < count; ++lane) v[lane] = static_cast<T>(from[lane]);
    }
    return v;
  }

  /// Transposes a square of vectors: step by step, exchanges the off-diagonal quarters of all squares of
  /// 2 * kStep vectors.
  template <int kStep = 1>
  static void transpose(Vector* square) {
    if constexpr (kStep < kLanes<T>) {
      exchange<kStep>(square, std::make_integer_sequence<int, kLanes<T>>());
      transpose<2 * kStep>(square);
    }
  }

 private:
  template <int kStep, int... kLane>
  static void exchange(Vector* square, std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & kStep) continue;
      const Vector upper = square[i], lower = square[i + kStep];
      square[i] =
          __builtin_shufflevector(upper, lower, (kLane & kStep ? kLanes<T> + kLane - kStep : kLane)...);
      square[i + kStep] =
          __builtin_shufflevector(upper, lower, (kLane & kStep ? kLanes<T> + kLane : kLane + kStep)...);
    }
  }
};

/// The first element of a matrix of T in memory; element (i, j) is at data[i * row_step + j * col_step].
template <class T>
struct Strided {
  const T* data;
  int64_t row_step;
  int64_t col_step = 1;
};

/// Packs source[depth, cols], cols <= kPanelCols<T>, to panel[depth, kPanelCols<T>]. Element (k, j) of the
/// source is at source[k * stride + j]. Absent columns become zeros.
template <class T, class From>
void pack_panel(const From* source, int64_t stride, int64_t depth, int64_t cols, T* panel) {
  for (int64_t k = 0; k < depth; ++k, source += stride, panel += kPanelCols<T>) {
    Simd<T>::store(Simd<T>::convert(source, cols), panel);
    Simd<T>::store(Simd<T>::convert(source + kLanes<T>, cols - kLanes<T>), panel + kLanes<T>);
  }
}

/// The same with element (k, j) at source[j * stride + k]. Writes whole squares: `panel` has room for `depth`
/// rounded up to a multiple of kLanes<T>.
template <class T, class From>
void pack_transposed_panel(const From* source, int64_t stride, int64_t depth, int64_t cols, T* panel) {
  for (int64_t col = 0; col < kPanelCols<T>; col += kLanes<T>) {
    for (int64_t k = 0; k < depth; k += kLanes<T>) {
      typename Simd<T>::Vector square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) {
        const bool present = col + i < cols;
        square[i] =
            Simd<T>::convert(present ? source + (col + i) * stride + k : source, present ? depth - k : 0);
      }
      Simd<T>::transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) Simd<T>::store(square[i], panel + (k + i) * kPanelCols<T> + col);
    }
  }
}

/// c[kRows, cols] = a[kRows, depth] panel[depth, kPanelCols<T>], plus the old c if `add`; the panel's columns
/// are contiguous. Columns from `cols` on are neither read nor written in c.
template <class T, int kRows>
void multiply_rows(const Strided<T>& a, const Strided<T>& panel, int64_t depth, bool add, T* c,
                   int64_t stride, int64_t cols) {
  using Vector = typename Simd<T>::Vector;
  Vector left[kRows] = {}, right[kRows] = {};
  const T *a_col = a.data, *b_row = panel.data;
  const int64_t a_step = a.col_step, b_step = panel.row_step, row_step = a.row_step;
  for (int64_t k = 0; k < depth; ++k, a_col += a_step, b_row += b_step) {
    const Vector b_left = Simd<T>::load(b_row), b_right = Simd<T>::load(b_row + kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T factor = a_col[r * row_step];
      left[r] += factor * b_left;
      right[r] += factor * b_right;
    }
  }
  if (cols == kPanelCols<T>) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r, c += stride) {
      Simd<T>::store(add ? Simd<T>::load(c) + left[r] : left[r], c);
      Simd<T>::store(add ? Simd<T>::load(c + kLanes<T>) + right[r] : right[r], c + kLanes<T>);
    }
    return;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r, c += stride) {
    T sums[kPanelCols<T>];
    Simd<T>::store(left[r], sums);
    Simd<T>::store(right[r], sums + kLanes<T>);
    for (int64_t col = 0; col < cols; ++col) c[col] = add ? c[col] + sums[col] : sums[col];
  }
}

/// multiply_rows for any number of rows.
template <class T>
void multiply_panel(Strided<T> a, const Strided<T>& panel, int64_t depth, bool add, T* c, int64_t stride,
                    int64_t rows, int64_t cols) {
  constexpr auto make_kernels = []<int... kRow>(std::integer_sequence<int, kRow...>) {
    return std::array{&multiply_rows<T, kRow + 1>...};
  };
  constexpr auto kernels = make_kernels(std::make_integer_sequence<int, kPanelRows>());
  for (int64_t row = 0; row < rows; row += kPanelRows) {
    const auto count = static_cast<size_t>(std::min<int64_t>(kPanelRows, rows - row));
    kernels[count - 1](a, panel, depth, add, c, stride, cols);
    a.data += kPanelRows * a.row_step;
    c += kPanelRows * stride;
  }
}

}  // namespace moec::cpu
