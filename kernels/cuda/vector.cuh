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

template <int N>
struct alignas(4 * N < 16 ? 4 * N : 16) Words {
  uint32_t word[N];
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

/// The elements of a vector in the type that arithmetic is done in. Those of bf16 are taken from the words
/// that hold them: loaded vectors stay packed, two elements to a register, until they are used.
template <class T, int N, class Acc = Accumulator<T>>
__device__ inline void unpack(const Vector<T, N>& vector, Acc (&values)[N]) {
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    const auto words = __builtin_bit_cast(Words<N / 2>, vector);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      values[2 * i] = __uint_as_float(words.word[i] << 16);
      values[2 * i + 1] = __uint_as_float(words.word[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = static_cast<Acc>(vector.value[i]);
  }
}

/// Keeps the compiler from holding the elements that it unpacks before this for uses behind it.
template <class T, int N>
__device__ inline void keep_packed(Vector<T, N>& vector) {
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    auto words = __builtin_bit_cast(Words<N / 2>, vector);
#pragma unroll
    for (uint32_t& word : words.word) asm volatile("" : "+r"(word));
    vector = __builtin_bit_cast(Vector<T, N>, words);
  }
}

/// The values, rounded to storage.
template <class T, int N, class Acc = Accumulator<T>>
__device__ inline Vector<T, N> pack(const Acc (&values)[N]) {
  if constexpr (std::is_same_v<T, bf16> && N % 2 == 0) {
    Words<N / 2> words;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
      memcpy(&words.word[i], &pair, sizeof pair);
    }
    return __builtin_bit_cast(Vector<T, N>, words);
  } else {
    Vector<T, N> vector;
#pragma unroll
    for (int i = 0; i < N; ++i) vector.value[i] = to_storage<T>(values[i]);
    return vector;
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
