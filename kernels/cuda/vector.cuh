// Loads and stores of 16 bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/types.cuh"

namespace moec::cuda {

/// N consecutive elements that are loaded and stored together.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T value[N];
};

/// The same as the words that hold them. A vector that is loaded behind a condition and kept is better held
/// so: elements of 16 bits would be taken apart where they are loaded, and the next load would wait for that.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Packed {
  using Word = std::conditional_t<sizeof(T) * N % 4 == 0, uint32_t, uint16_t>;
  Word word[sizeof(T) * N / sizeof(Word)];
};

/// Elements of T in 16 bytes. f64 plans check others and need no speed.
template <class T>
constexpr int kVectorWidth = std::is_same_v<T, double> ? 1 : static_cast<int>(16 / sizeof(T));

/// The vector number `i` of x, whose address is a multiple of the vector's alignment.
template <int N, class T>
__device__ inline Vector<T, N> load(const T* x, int64_t i) {
  return reinterpret_cast<const Vector<T, N>*>(x)[i];
}

template <int N, class T>
__device__ inline void store(T* y, int64_t i, const Vector<T, N>& vector) {
  reinterpret_cast<Vector<T, N>*>(y)[i] = vector;
}

template <int N, class T>
__device__ inline Packed<T, N> load_packed(const T* x, int64_t i) {
  return reinterpret_cast<const Packed<T, N>*>(x)[i];
}

/// The same of what is not read again soon: other lines stay in the cache.
template <int N, class T>
__device__ inline Packed<T, N> load_once(const T* x, int64_t i) {
  if constexpr (sizeof(T) * N == 16)
    return __builtin_bit_cast(Packed<T, N>, __ldcs(reinterpret_cast<const uint4*>(x) + i));
  else
    return load_packed<N>(x, i);
}

template <int N, class T>
__device__ inline void store(T* y, int64_t i, const Packed<T, N>& packed) {
  reinterpret_cast<Packed<T, N>*>(y)[i] = packed;
}

template <class T, int N>
constexpr bool kBf16Pairs = std::is_same_v<T, bf16>&& N % 2 == 0;

/// The elements in the type that arithmetic is done in.
template <class T, int N, class Acc = Accumulator<T>>
__device__ inline void unpack(const Packed<T, N>& packed, Acc (&values)[N]) {
  if constexpr (kBf16Pairs<T, N>) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      values[2 * i] = __uint_as_float(packed.word[i] << 16);
      values[2 * i + 1] = __uint_as_float(packed.word[i] & 0xffff0000u);
    }
  } else {
    const auto vector = __builtin_bit_cast(Vector<T, N>, packed);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = static_cast<Acc>(vector.value[i]);
  }
}

/// The values, rounded to storage.
template <class T, int N, class Acc = Accumulator<T>>
__device__ inline Packed<T, N> pack(const Acc (&values)[N]) {
  if constexpr (kBf16Pairs<T, N>) {
    Packed<T, N> packed;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
      memcpy(&packed.word[i], &pair, sizeof pair);
    }
    return packed;
  } else {
    Vector<T, N> vector;
#pragma unroll
    for (int i = 0; i < N; ++i) vector.value[i] = to_storage<T>(values[i]);
    return __builtin_bit_cast(Packed<T, N>, vector);
  }
}

/// Keeps the compiler from holding elements that it unpacked before this for uses behind it.
template <class T, int N>
__device__ inline void keep_packed(Packed<T, N>& packed) {
  if constexpr (kBf16Pairs<T, N>) {
#pragma unroll
    for (uint32_t& word : packed.word) asm volatile("" : "+r"(word));
  }
}

/// Whether rows of `n` elements are made of whole vectors of `width` elements in all of the (present) views.
inline bool whole_vectors(int64_t n, int width, std::initializer_list<const TensorView*> views) {
  return n % width == 0 && std::ranges::all_of(views, [](const TensorView* view) {
           return reinterpret_cast<uintptr_t>(view->data) % 16 == 0;
         });
}

/// Returns body.template operator()<kWidth>(): kWidth elements of T together where rows of `n` elements allow
/// it in all views, else 1.
template <class T, class Body>
cudaError_t with_width(int64_t n, std::initializer_list<const TensorView*> views, Body&& body) {
  if constexpr (kVectorWidth < T >> 1)
    if (whole_vectors(n, kVectorWidth<T>, views)) return body.template operator()<kVectorWidth<T>>();
  return body.template operator()<1>();
}

}  // namespace moec::cuda
