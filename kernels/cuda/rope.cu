// Rotary position embedding (Su et al. 2021) with NTK-aware base scaling.
#include <cmath>

#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

/// Tokens of a block, whose angles its threads compute once for all heads.
constexpr int kTokens = 8;
/// Items of a thread that are read together.
constexpr int kHeldItems = 4;

template <class T>
struct Rope {
  const T* x;
  T* y;  // may be x
  int64_t rows;
  int seq_len;
  int cols;
  int head_dim;
  int heads;                  // of the row that are moved: in place those that are rotated, else all
  int rotated_heads;          // queries and keys; values follow
  double frequency_exponent;  // log2 of the ratio of the frequencies of neighbouring pairs
  double direction;           // -1 rotates back
};

/// Sine and cosine of `half_turns` * pi, which is exact at any distance.
__device__ inline void half_turn_sincos(double half_turns, double& sine, double& cosine) {
  sincospi(half_turns, &sine, &cosine);
}
__device__ inline void half_turn_sincos(double half_turns, float& sine, float& cosine) {
  sincospif(static_cast<float>(half_turns - 2 * rint(0.5 * half_turns)), &sine, &cosine);
}

template <class Acc>
struct Angle {
  Acc cosine, sine;
};

/// angles[kTokens, head_dim / 2] of the rows from `first` on.
template <class T, class Acc = Accumulator<T>>
__device__ void compute_angles(const Rope<T>& rope, int64_t first, Angle<Acc>* angles) {
  const int pairs = rope.head_dim / 2, start = static_cast<int>(first % rope.seq_len);
  for (int i = threadIdx.x; i < kTokens * pairs; i += kThreads) {
    constexpr double kInversePi = 0.3183098861837907;
    const auto position = static_cast<double>((start + i / pairs) % rope.seq_len);
    Acc sine, cosine;
    half_turn_sincos(position * kInversePi * exp2(i % pairs * rope.frequency_exponent), sine, cosine);
    angles[i] = {cosine, sine * static_cast<Acc>(rope.direction)};
  }
}

/// What is rotated together: in the interleaved style, where a pair is two neighbours, the pairs of a vector;
/// in the other those of two vectors that lie half a head apart.
template <class T, int kWidth, bool kInterleaved>
struct RopeItem {
  using Acc = Accumulator<T>;
  static constexpr int kVectors = kInterleaved ? 1 : 2, kPairs = kVectors * kWidth / 2;

  Packed<T, kWidth> part[kVectors];

  /// Item `i` of the row x; `half` is the number of vectors in half a head.
  __device__ static int place(int i, int half) { return kInterleaved ? i : i / half * 2 * half + i % half; }
  __device__ void read(const T* x, int i, int half) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) part[v] = load_packed<kWidth>(x, place(i, half) + v * half);
  }
  __device__ void write(T* y, int i, int half) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) store(y, place(i, half) + v * half, part[v]);
  }
  __device__ void rotate(const Angle<Acc>* angles) {
    Acc values[kVectors][kWidth];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) unpack(part[v], values[v]);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      Acc& first = kInterleaved ? values[0][2 * p] : values[0][p];
      Acc& second = kInterleaved ? values[0][2 * p + 1] : values[kVectors - 1][p];
      const Acc x1 = first, x2 = second;
      first = x1 * angles[p].cosine - x2 * angles[p].sine;
      second = x1 * angles[p].sine + x2 * angles[p].cosine;
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) part[v] = pack<T>(values[v]);
  }
};

/// A block rotates the rows of kTokens tokens. What it reads first is on its way while it computes the
/// angles.
template <class T, int kWidth, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rope_kernel(const Rope<T> rope) {
  begin_kernel();
  using Item = RopeItem<T, kWidth, kInterleaved>;
  using Acc = Accumulator<T>;
  extern __shared__ double shared[];
  auto* angles = reinterpret_cast<Angle<Acc>*>(shared);
  const int pairs = rope.head_dim / 2, half = pairs / kWidth;
  const int head_items = pairs / Item::kPairs, row_items = rope.heads * head_items;
  const int64_t first = int64_t{blockIdx.x} * kTokens;
  const int tokens = static_cast<int>(min(int64_t{kTokens}, rope.rows - first)), items = tokens * row_items;
  const T* x = rope.x + first * rope.cols;
  T* y = rope.y + first * rope.cols;

  for (int round = 0; round < items; round += kHeldItems * kThreads) {
    const int begin = round + static_cast<int>(threadIdx.x);
    Item held[kHeldItems];
#pragma unroll
    for (int j = 0; j < kHeldItems; ++j) {
      const int i = begin + j * kThreads;
      if (i < items) held[j].read(x + i / row_items * rope.cols, i % row_items, half);
    }
    if (round == 0) {
      compute_angles(rope, first, angles);
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kHeldItems; ++j) {
      const int i = begin + j * kThreads;
      if (i >= items) break;
      const int token = i / row_items, item = i % row_items;
      if (item / head_items < rope.rotated_heads)
        held[j].rotate(angles + token * pairs + item % head_items * Item::kPairs);
      held[j].write(y + token * rope.cols, item, half);
    }
  }
}

cudaError_t rotate(const KernelCall& call, const CudaContext& context, double direction) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  const auto& attrs = call.attrs<fb::RopeT>();
  const int head_dim = static_cast<int>(attrs.head_dim),
            rotated = static_cast<int>(attrs.heads + attrs.kv_heads),
            all = rotated + static_cast<int>(attrs.kv_heads);
  const double dim = head_dim, base = attrs.base * std::pow(attrs.ntk_alpha, dim / (dim - 2));
  return with_type(x.dtype, [&]<class T>() {
    const Rope<T> rope = {.x = x.as<const T>(),
                          .y = y.as<T>(),
                          .rows = x.rows(),
                          .seq_len = static_cast<int>(x.dim(1)),
                          .cols = static_cast<int>(x.cols()),
                          .head_dim = head_dim,
                          .heads = x.data == y.data ? rotated : all,
                          .rotated_heads = rotated,
                          .frequency_exponent = -2 * std::log2(base) / dim,
                          .direction = direction};
    const size_t angles = sizeof(Angle<Accumulator<T>>) * static_cast<size_t>(kTokens * head_dim / 2);
    const auto run = [&](void (*kernel)(Rope<T>)) {
      return launch_shared(context, kernel, ceil_div(rope.rows, kTokens), kThreads, angles, rope);
    };
    if (attrs.style == fb::RopeStyle::Interleaved)
      return with_width<T>(head_dim, {&x, &y}, [&]<int kWidth>() {
        return run(rope_kernel<T, std::max(kWidth, 2), true>);  // a vector holds whole pairs
      });
    return with_width<T>(head_dim / 2, {&x, &y},
                         [&]<int kWidth>() { return run(rope_kernel<T, kWidth, false>); });
  });
}

}  // namespace

cudaError_t rope(const KernelCall& call, const CudaContext& context) { return rotate(call, context, 1); }
cudaError_t rope_bwd(const KernelCall& call, const CudaContext& context) { return rotate(call, context, -1); }

}  // namespace moec::cuda
