// Token and position embeddings. Weights are [vocabulary, D] and [context, D].
#include <cstring>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

// A block of a weight gradient whose sums stay in the L2 cache.
constexpr int64_t kBlockRows = 128, kBlockCols = 256;

/// y[n] = (accumulate ? y : 0) + sums.
template <class Acc, class Out>
void store_sums(const Acc* sums, Out* y, int64_t n, bool accumulate) {
  for (int64_t i = 0; i < n; ++i) {
    const Acc before = accumulate ? static_cast<Acc>(y[i]) : Acc{0};
    y[i] = static_cast<Out>(static_cast<Accumulator<Out>>(before + sums[i]));
  }
}

/// The sums over all tokens, in token order, for the block of dweight that begins at (row_begin, col_begin).
/// Rows of tokens that do not occur are zeroed or left as they are.
template <class T, class Grad>
void embedding_bwd_block(const KernelCall& call, int64_t row_begin, int64_t col_begin) {
  using Acc = Accumulator<T>;
  const TensorView &tokens = call.inputs[0], &dweight = call.outputs[0];
  const bool accumulate = call.inputs[2].present();
  const int64_t dim = dweight.cols();
  const int64_t rows = std::min(kBlockRows, dweight.rows() - row_begin);
  const int64_t cols = std::min(kBlockCols, dim - col_begin);
  Acc sums[kBlockRows][kBlockCols];
  bool occurs[kBlockRows] = {};
  for (int64_t t = 0; t < tokens.elements(); ++t) {
    const int64_t row = tokens.as<const int32_t>()[t] - row_begin;
    if (row < 0 || row >= rows) continue;
    const T* dy = call.inputs[1].as<const T>() + t * dim + col_begin;
    for (int64_t i = 0; i < cols; ++i)
      sums[row][i] = (occurs[row] ? sums[row][i] : 0) + static_cast<Acc>(dy[i]);
    occurs[row] = true;
  }
  for (int64_t row = 0; row < rows; ++row) {
    Grad* y = dweight.as<Grad>() + (row_begin + row) * dim + col_begin;
    if (occurs[row])
      store_sums(sums[row], y, cols, accumulate);
    else if (!accumulate)
      std::fill_n(y, cols, Grad(0));
  }
}

}  // namespace

void embedding(const KernelCall& call) {
  const TensorView &tokens = call.inputs[0], &weight = call.inputs[1], &y = call.outputs[0];
  const int64_t row_bytes = weight.cols() * dtype_size(weight.dtype);
  parallel_rows(tokens.elements(), weight.cols(), [&](int64_t t) {
    std::memcpy(y.as<char>() + t * row_bytes, weight.as<char>() + tokens.as<const int32_t>()[t] * row_bytes,
                static_cast<size_t>(row_bytes));
  });
}

/// Every block looks through all tokens, and no two blocks write the same element.
void embedding_bwd(const KernelCall& call) {
  const TensorView& dweight = call.outputs[0];
  const int64_t row_blocks = (dweight.rows() + kBlockRows - 1) / kBlockRows;
  const int64_t col_blocks = (dweight.cols() + kBlockCols - 1) / kBlockCols;
  dispatch(call.inputs[1].dtype, [&]<class T>() {
    dispatch(dweight.dtype, [&]<class Grad>() {
      parallel_for(row_blocks * col_blocks, [&](int64_t block) {
        embedding_bwd_block<T, Grad>(call, block / col_blocks * kBlockRows, block % col_blocks * kBlockCols);
      });
    });
  });
}

void position_embedding(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &weight = call.inputs[1], &y = call.outputs[0];
  const int64_t seq_len = x.dim(-2), dim = x.cols();
  dispatch(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    parallel_rows(x.rows(), dim, [&](int64_t row) {
      const T* in = x.as<const T>() + row * dim;
      const T* position = weight.as<const T>() + row % seq_len * dim;
      T* out = y.as<T>() + row * dim;
#pragma GCC ivdep
      for (int64_t i = 0; i < dim; ++i)
        out[i] = static_cast<T>(static_cast<Acc>(in[i]) + static_cast<Acc>(position[i]));
    });
  });
}

/// Positions beyond the sequence get no gradient: zeros, or what was there.
void position_embedding_bwd(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &dweight = call.outputs[0];
  const bool accumulate = call.inputs[1].present();
  const int64_t seq_len = dy.dim(-2), dim = dy.cols(), batch = dy.elements() / (seq_len * dim);
  dispatch(dy.dtype, [&]<class T>() {
    dispatch(dweight.dtype, [&]<class Grad>() {
      using Acc = Accumulator<T>;
      parallel_rows(dweight.rows(), dim, [&](int64_t position) {
        for (int64_t begin = 0; begin < dim; begin += kBlockCols) {
          const int64_t cols = std::min(kBlockCols, dim - begin);
          Acc sums[kBlockCols] = {};
          for (int64_t b = 0; b < batch && position < seq_len; ++b) {
            const T* row = dy.as<const T>() + (b * seq_len + position) * dim + begin;
            for (int64_t i = 0; i < cols; ++i) sums[i] += static_cast<Acc>(row[i]);
          }
          store_sums(sums, dweight.as<Grad>() + position * dim + begin, cols, accumulate);
        }
      });
    });
  });
}

/// One step after the other.
void fused_embedding(const KernelCall& call) {
  const TensorView &state = call.inputs[3], &y = call.outputs[0];
  run(embedding, {call.inputs[0], call.inputs[1]}, y, fb::EmbeddingT());
  run(position_embedding, {y, call.inputs[2]}, y, fb::PositionEmbeddingT());
  if (state.present()) run(dropout, {y, state}, y, call.attrs<fb::DropoutT>());
}

}  // namespace moec::cpu
