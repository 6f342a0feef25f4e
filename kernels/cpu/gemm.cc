#include "kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cpu/gemm_panel.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

/// A tile of an output is kTileCols wide and, depending on how many there are, this high.
constexpr int64_t kHighestTile = 256;
constexpr int64_t kLowestTile = 64;
constexpr int64_t kEnoughTiles = 16;
constexpr int64_t kTileCols = 64;
constexpr int64_t kPageBytes = 4096;
/// Below this many rows, columns or terms in a sum, the small kernels of the BLAS are faster.
constexpr int64_t kSmall = 8;
/// Columns of a and rows of b that are multiplied at a time: a packed panel of b fits the first cache.
constexpr int64_t kDepth = 256;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tile_count(const Matrix& c, int64_t height) {
  return ceil_div(c.rows, height) * ceil_div(c.cols, kTileCols);
}

/// The largest height (the fewest packed panels) that leaves enough tiles for many threads.
int64_t tile_height(std::span<const Product> products) {
  for (int64_t height = kHighestTile; height > kLowestTile; height /= 2) {
    int64_t tiles = 0;
    for (const Product& product : products) tiles += tile_count(product.c, height);
    if (tiles >= kEnoughTiles) return height;
  }
  return kLowestTile;
}

/// OpenBLAS is never to start threads of its own.
void use_one_blas_thread() {
  static const bool done = (openblas_set_num_threads(1), true);
  (void)done;
}

template <class T>
Strided<T> strided(const Matrix& m) {
  return {static_cast<const T*>(m.data), m.transposed ? 1 : m.stride, m.transposed ? m.stride : 1};
}

/// The panel b[depth, cols], stored as B, for `rows` rows of a: where it lies if it is fit for use, otherwise
/// packed in `scratch`. Panel rows a page or more apart compete for the same lines of the first cache;
/// packing them pays when many rows of a meet them.
template <class B, class T = Accumulator<B>>
Strided<T> load_panel(const Matrix& b, int64_t rows, T* scratch) {
  const auto* source = static_cast<const B*>(b.data);
  if constexpr (std::is_same_v<B, T>) {
    const bool packs = b.stride * sizeof(T) >= kPageBytes && rows >= kLowestTile;
    if (!b.transposed && b.cols == kPanelCols<T> && !packs) return strided<T>(b);
  }
  if (b.transposed) {
    pack_transposed_panel(source, b.stride, b.rows, b.cols, scratch);
  } else {
    pack_panel(source, b.stride, b.rows, b.cols, scratch);
  }
  return {scratch, kPanelCols<T>};
}

/// c += a b, or c = a b unless `add`. c is at most kHighestTile high, a at most kDepth wide; B stores b.
template <class B>
void multiply_block(const Matrix& a, const Matrix& b, bool add, const Matrix& c) {
  using T = Accumulator<B>;
  alignas(kVectorBytes) float a_scratch[kHighestTile * kDepth];
  alignas(kVectorBytes) T panel_scratch[kDepth * kPanelCols<T>];
  const Strided<T> left = strided<T>(load(a, a_scratch));
  for (int64_t col = 0; col < c.cols; col += kPanelCols<T>) {
    const int64_t cols = std::min<int64_t>(kPanelCols<T>, c.cols - col);
    const Strided<T> panel = load_panel<B>(b.block(0, col, b.rows, cols), c.rows, panel_scratch);
    multiply_panel(left, panel, b.rows, add, static_cast<T*>(c.data) + col, c.stride, c.rows, cols);
  }
}

/// The same for small products, which would leave most of a panel or of its rows empty.
void multiply_small(const Matrix& a, const Matrix& b, bool add, const Matrix& c) {
  alignas(kVectorBytes) float a_scratch[kHighestTile * kDepth];
  alignas(kVectorBytes) float b_scratch[kDepth * kTileCols];
  gemm(1, load(a, a_scratch), load(b, b_scratch), add ? 1 : 0, c);
}

/// The tile of at most `height` x kTileCols elements whose first is (row, col).
void multiply_tile(const Product& product, int64_t row, int64_t col, int64_t height) {
  alignas(kVectorBytes) float c_scratch[kHighestTile * kTileCols];
  const int64_t rows = std::min(height, product.c.rows - row),
                cols = std::min(kTileCols, product.c.cols - col);
  const int64_t inner = product.a.cols;
  const Matrix target = product.c.block(row, col, rows, cols);
  const bool rounds = dtype_size(target.dtype) == 2;
  const Matrix sum = rounds ? Matrix{c_scratch, fb::DType::F32, rows, cols, cols} : target;

  // What the sum over k is added to.
  const bool biased = product.bias.data != nullptr;
  if (biased) {
    const Matrix bias = product.bias.block(0, col, 1, cols);
    for (int64_t r = 0; r < rows; ++r) copy(bias, sum.block(r, 0, 1, cols));
  } else if (product.accumulate && rounds) {
    copy(target, sum);
  }
  bool add = biased || product.accumulate;

  const bool small = std::min({product.c.rows, product.c.cols, inner}) < kSmall;
  int64_t k = 0;
  do {  // once even without any k, so that the sum is defined
    const int64_t depth = std::min(kDepth, inner - k);
    const Matrix a = product.a.block(row, k, rows, depth), b = product.b.block(k, col, depth, cols);
    if (small) {
      multiply_small(a, b, add, sum);
    } else {
      dispatch(b.dtype, [&]<class B>() { multiply_block<B>(a, b, add, sum); });
    }
    add = true;
    k += depth;
  } while (k < inner);
  if (rounds) copy(sum, target);
}

}  // namespace

void copy(const Matrix& source, const Matrix& target) {
  dispatch(source.dtype, [&]<class From>() {
    dispatch(target.dtype, [&]<class To>() {
      for (int64_t row = 0; row < source.rows; ++row) {
        const From* from = static_cast<const From*>(source.data) + row * source.stride;
        To* to = static_cast<To*>(target.data) + row * target.stride;
        for (int64_t col = 0; col < source.cols; ++col)
          to[col] = static_cast<To>(static_cast<Accumulator<To>>(from[col]));
      }
    });
  });
}

Matrix load(const Matrix& source, float* scratch) {
  if (dtype_size(source.dtype) != 2) return source;
  if (source.transposed) return load(source.t(), scratch).t();
  const Matrix converted = {scratch, fb::DType::F32, source.rows, source.cols, source.cols};
  copy(source, converted);
  return converted;
}

void gemm(double alpha, const Matrix& a, const Matrix& b, double beta, const Matrix& c) {
  use_one_blas_thread();
  const auto order = [](const Matrix& m) { return m.transposed ? CblasTrans : CblasNoTrans; };
  const auto size = [](int64_t n) { return static_cast<blasint>(n); };
  const auto call = [&]<class T>(auto* blas) {
    blas(CblasRowMajor, order(a), order(b), size(c.rows), size(c.cols), size(a.cols), static_cast<T>(alpha),
         static_cast<const T*>(a.data), size(a.stride), static_cast<const T*>(b.data), size(b.stride),
         static_cast<T>(beta), static_cast<T*>(c.data), size(c.stride));
  };
  if (c.dtype == fb::DType::F64) {
    call.operator()<double>(cblas_dgemm);
  } else {
    call.operator()<float>(cblas_sgemm);
  }
}

void multiply(std::span<const Product> products) {
  const int64_t height = tile_height(products);
  std::vector<int64_t> first_tile = {0};
  for (const Product& product : products)
    first_tile.push_back(first_tile.back() + tile_count(product.c, height));
  parallel_for(first_tile.back(), [&](int64_t tile) {
    const auto after = std::upper_bound(first_tile.begin(), first_tile.end(), tile);
    const Product& product = products[static_cast<size_t>(after - first_tile.begin() - 1)];
    const int64_t index = tile - *(after - 1), across = ceil_div(product.c.cols, kTileCols);
    multiply_tile(product, index / across * height, index % across * kTileCols, height);
  });
}

}  // namespace moec::cpu
