#include "kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

constexpr int64_t kLargestTile = 256;
constexpr int64_t kSmallestTile = 64;
constexpr int64_t kEnoughTiles = 32;
/// Columns of a and rows of b that are converted at a time where they are not stored as computed.
constexpr int64_t kDepth = 256;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tile_count(const Matrix& c, int64_t edge) { return ceil_div(c.rows, edge) * ceil_div(c.cols, edge); }

/// The largest edge (fewest copies in the BLAS) that leaves enough tiles for many threads.
int64_t tile_edge(std::span<const Product> products) {
  for (int64_t edge = kLargestTile; edge > kSmallestTile; edge /= 2) {
    int64_t tiles = 0;
    for (const Product& product : products) tiles += tile_count(product.c, edge);
    if (tiles >= kEnoughTiles) return edge;
  }
  return kSmallestTile;
}

/// OpenBLAS is never to start threads of its own.
void use_one_blas_thread() {
  static const bool done = (openblas_set_num_threads(1), true);
  (void)done;
}

/// The tile of at most edge x edge elements whose first is (row, col).
void multiply_tile(const Product& product, int64_t row, int64_t col, int64_t edge) {
  alignas(64) float a_scratch[kLargestTile * kDepth];
  alignas(64) float b_scratch[kLargestTile * kDepth];
  alignas(64) float c_scratch[kLargestTile * kLargestTile];
  const int64_t rows = std::min(edge, product.c.rows - row), cols = std::min(edge, product.c.cols - col);
  const int64_t inner = product.a.cols;
  const Matrix target = product.c.block(row, col, rows, cols);
  const bool rounds = target.dtype == fb::DType::BF16;
  const Matrix sum = rounds ? Matrix{c_scratch, fb::DType::F32, rows, cols, cols} : target;

  // What the sum over k is added to.
  const bool biased = product.bias.data != nullptr;
  if (biased) {
    const Matrix bias = product.bias.block(0, col, 1, cols);
    for (int64_t r = 0; r < rows; ++r) copy(bias, sum.block(r, 0, 1, cols));
  } else if (product.accumulate && rounds) {
    copy(target, sum);
  }
  double beta = biased || product.accumulate ? 1 : 0;

  const bool converts = product.a.dtype == fb::DType::BF16 || product.b.dtype == fb::DType::BF16;
  const int64_t step = converts ? kDepth : std::max<int64_t>(inner, 1);
  int64_t k = 0;
  do {  // once even without any k, so that the sum is defined
    const int64_t depth = std::min(step, inner - k);
    gemm(1, load(product.a.block(row, k, rows, depth), a_scratch),
         load(product.b.block(k, col, depth, cols), b_scratch), beta, sum);
    beta = 1;
    k += step;
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
  if (source.dtype != fb::DType::BF16) return source;
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
  const int64_t edge = tile_edge(products);
  std::vector<int64_t> first_tile = {0};
  for (const Product& product : products)
    first_tile.push_back(first_tile.back() + tile_count(product.c, edge));
  parallel_for(first_tile.back(), [&](int64_t tile) {
    const auto after = std::upper_bound(first_tile.begin(), first_tile.end(), tile);
    const Product& product = products[static_cast<size_t>(after - first_tile.begin() - 1)];
    const int64_t index = tile - *(after - 1), across = ceil_div(product.c.cols, edge);
    multiply_tile(product, index / across * edge, index % across * edge, edge);
  });
}

}  // namespace moec::cpu
