// Rotary position embedding (Su et al. 2021) with NTK-aware base scaling.
#include <cmath>

#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

constexpr int kBlock = 64;

template <class T>
struct Rope {
  const T* x;
  T* y;  // may be x
  int seq_len;
  int cols;
  int head_dim;
  int rotated_heads;          // queries and keys; values follow
  int cols_copied;            // of the values; 0 in place
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

/// A block rotates the row of one token. A thread rotates kWidth pairs: those of two vectors, which follow
/// each other in the interleaved style, where a pair is two neighbours, and lie half a head apart in the
/// other.
template <class T, int kWidth, bool kInterleaved>
__global__ void __launch_bounds__(kBlock) rope_kernel(const Rope<T> rope) {
  begin_kernel();
  using Acc = Accumulator<T>;
  extern __shared__ double shared[];
  const int pairs = rope.head_dim / 2;
  auto* sine = reinterpret_cast<Acc*>(shared);
  auto* cosine = sine + pairs;
  const auto position = static_cast<double>(blockIdx.x % static_cast<unsigned>(rope.seq_len));
  for (int i = threadIdx.x; i < pairs; i += kBlock) {
    constexpr double kInversePi = 0.3183098861837907;
    half_turn_sincos(position * kInversePi * exp2(i * rope.frequency_exponent), sine[i], cosine[i]);
    sine[i] *= static_cast<Acc>(rope.direction);
  }
  __syncthreads();

  const T* x = rope.x + int64_t{blockIdx.x} * rope.cols;
  T* y = rope.y + int64_t{blockIdx.x} * rope.cols;
  const int head_vectors = pairs / kWidth;
  for (int item = threadIdx.x; item < rope.rotated_heads * head_vectors; item += kBlock) {
    const int head = item / head_vectors, v = item % head_vectors;
    const int low = head * 2 * head_vectors + (kInterleaved ? 2 * v : v),
              high = low + (kInterleaved ? 1 : head_vectors);
    Vector<T, kWidth> a = load<kWidth>(x, low), b = load<kWidth>(x, high);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      T& first = kInterleaved ? (2 * j < kWidth ? a : b).value[2 * j % kWidth] : a.value[j];
      T& second = kInterleaved ? (2 * j + 1 < kWidth ? a : b).value[(2 * j + 1) % kWidth] : b.value[j];
      const auto x1 = static_cast<Acc>(first), x2 = static_cast<Acc>(second);
      const Acc s = sine[v * kWidth + j], c = cosine[v * kWidth + j];
      first = to_storage<T>(x1 * c - x2 * s);
      second = to_storage<T>(x1 * s + x2 * c);
    }
    store(y, low, a);
    store(y, high, b);
  }
  const int rotated_vectors = rope.rotated_heads * 2 * head_vectors;
  for (int i = threadIdx.x; i < rope.cols_copied / kWidth; i += kBlock)
    store(y, rotated_vectors + i, load<kWidth>(x, rotated_vectors + i));
}

cudaError_t rotate(const KernelCall& call, const CudaContext& context, double direction) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  const auto& attrs = call.attrs<fb::RopeT>();
  const int head_dim = static_cast<int>(attrs.head_dim);
  const double dim = head_dim, base = attrs.base * std::pow(attrs.ntk_alpha, dim / (dim - 2));
  return with_type(x.dtype, [&]<class T>() {
    const Rope<T> rope = {x.as<const T>(),
                          y.as<T>(),
                          static_cast<int>(x.dim(1)),
                          static_cast<int>(x.cols()),
                          head_dim,
                          static_cast<int>(attrs.heads + attrs.kv_heads),
                          x.data == y.data ? 0 : static_cast<int>(attrs.kv_heads) * head_dim,
                          -2 * std::log2(base) / dim,
                          direction};
    return with_width<T>(head_dim / 2, {&x, &y}, [&]<int kWidth>() {
      const auto kernel = attrs.style == fb::RopeStyle::Interleaved ? rope_kernel<T, kWidth, true>
                                                                    : rope_kernel<T, kWidth, false>;
      const size_t table_bytes = sizeof(Accumulator<T>) * static_cast<size_t>(head_dim);
      return launch_shared(context, kernel, x.rows(), kBlock, table_bytes, rope);
    });
  });
}

}  // namespace

cudaError_t rope(const KernelCall& call, const CudaContext& context) { return rotate(call, context, 1); }
cudaError_t rope_bwd(const KernelCall& call, const CudaContext& context) { return rotate(call, context, -1); }

}  // namespace moec::cuda
