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
