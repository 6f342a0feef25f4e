// Rotary position embedding (Su et al. 2021) with NTK-aware base scaling.
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

// Pairs of a head whose sines and cosines are held at a time, and positions handed to a thread at a time.
constexpr int64_t kPairs = 64, kPositions = 16;

/// (x1, x2) -> (x1 cos - x2 sin, x1 sin + x2 cos) for `pairs` pairs; the elements of a pair are `apart`
/// elements apart and pairs are kStride elements apart. y may be x.
template <int kStride, class T, class Acc>
void rotate(const T* x, T* y, int64_t pairs, int64_t apart, const Acc* cosine, const Acc* sine) {
#pragma GCC ivdep
  for (int64_t i = 0; i < pairs; ++i) {
    const Acc x1 = x[kStride * i], x2 = x[kStride * i + apart];
    y[kStride * i] = static_cast<T>(x1 * cosine[i] - x2 * sine[i]);
    y[kStride * i + apart] = static_cast<T>(x1 * sine[i] + x2 * cosine[i]);
  }
}

/// Rotates the pairs [begin, begin + pairs) of one head; y may be x.
template <class T, class Acc>
void rotate_head(fb::RopeStyle style, const T* x, T* y, int64_t head_dim, int64_t begin, int64_t pairs,
                 const Acc* cosine, const Acc* sine) {
  if (style == fb::RopeStyle::Half)
    rotate<1>(x + begin, y + begin, pairs, head_dim / 2, cosine, sine);
  else
    rotate<2>(x + 2 * begin, y + 2 * begin, pairs, 1, cosine, sine);
}

/// All query and key heads at the positions [s_begin, s_end) of every sequence. Angles are computed once for
/// all sequences and heads, in f64; direction -1 rotates back.
template <class T>
void rope_positions(const KernelCall& call, int64_t s_begin, int64_t s_end, double direction) {
  using Acc = Accumulator<T>;
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  const fb::RopeT& rope = call.attrs<fb::RopeT>();
  const int64_t dim = rope.head_dim, heads = rope.heads + rope.kv_heads, seq_len = x.dim(-2), cols = x.cols();
  const double base =
      rope.base * std::pow(rope.ntk_alpha, static_cast<double>(dim) / static_cast<double>(dim - 2));
  for (int64_t begin = 0; begin < dim / 2; begin += kPairs) {
    const int64_t pairs = std::min(kPairs, dim / 2 - begin);
    double frequency[kPairs];
    Acc cosine[kPairs], sine[kPairs];
    for (int64_t i = 0; i < pairs; ++i)
      frequency[i] = std::pow(base, -2.0 * static_cast<double>(begin + i) / static_cast<double>(dim));
    for (int64_t s = s_begin; s < s_end; ++s) {
      for (int64_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(s) * frequency[i];
        cosine[i] = static_cast<Acc>(std::cos(angle));
        sine[i] = static_cast<Acc>(direction * std::sin(angle));
      }
      for (int64_t row = s; row < x.rows(); row += seq_len)
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t at = row * cols + head * dim;
          rotate_head(rope.style, x.as<const T>() + at, y.as<T>() + at, dim, begin, pairs, cosine, sine);
        }
    }
  }
}

/// Copies the value heads at the positions [s_begin, s_end) of every sequence, which in place are there
/// already.
void copy_values(const KernelCall& call, int64_t s_begin, int64_t s_end) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  if (x.data == y.data) return;
  const fb::RopeT& rope = call.attrs<fb::RopeT>();
  const int64_t value_cols = rope.kv_heads * int64_t{rope.head_dim}, size = dtype_size(x.dtype);
  for (int64_t s = s_begin; s < s_end; ++s)
    for (int64_t row = s; row < x.rows(); row += x.dim(-2)) {
      const int64_t at = ((row + 1) * x.cols() - value_cols) * size;
      std::memcpy(y.as<char>() + at, x.as<char>() + at, static_cast<size_t>(value_cols * size));
    }
}

void rotate_all(const KernelCall& call, double direction) {
  dispatch(call.inputs[0].dtype, [&]<class T>() {
    parallel_ranges(call.inputs[0].dim(-2), kPositions, [&](int64_t begin, int64_t end) {
      rope_positions<T>(call, begin, end, direction);
      copy_values(call, begin, end);
    });
  });
}

}  // namespace

void rope(const KernelCall& call) { rotate_all(call, 1); }
void rope_bwd(const KernelCall& call) { rotate_all(call, -1); }

}  // namespace moec::cpu
