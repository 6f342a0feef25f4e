#include <limits>
#include <type_traits>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"
#include "kernels/cpu/vector_math.h"

namespace moec::cpu {
namespace {

/// y may be x. Exponentials are kept in y where it holds them exactly and computed again where it rounds.
template <class T>
void softmax_row(const T* x, T* y, int64_t n) {
  using Acc = Accumulator<T>;
  constexpr bool kKeep = std::is_same_v<T, Acc>;
  Acc max = std::numeric_limits<Acc>::lowest(), sum = 0;
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < n; ++i) max = std::max(max, static_cast<Acc>(x[i]));
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const Acc e = exp_fast(static_cast<Acc>(x[i]) - max);
    if constexpr (kKeep) y[i] = e;
    sum += e;
  }
  const Acc factor = 1 / sum;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Acc e = kKeep ? static_cast<Acc>(y[i]) : exp_fast(static_cast<Acc>(x[i]) - max);
    y[i] = static_cast<T>(e * factor);
  }
}

template <class T>
void softmax_bwd_row(const T* dy, const T* y, T* dx, int64_t n) {
  using Acc = Accumulator<T>;
  Acc dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i) dot += static_cast<Acc>(dy[i]) * static_cast<Acc>(y[i]);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i)
    dx[i] = static_cast<T>(static_cast<Acc>(y[i]) * (static_cast<Acc>(dy[i]) - dot));
}

}  // namespace

void softmax(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  const int64_t n = x.cols();
  dispatch(x.dtype, [&]<class T>() {
    parallel_rows(x.rows(), n,
                  [&](int64_t row) { softmax_row(x.as<const T>() + row * n, y.as<T>() + row * n, n); });
  });
}

void softmax_bwd(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &y = call.inputs[1], &dx = call.outputs[0];
  const int64_t n = y.cols();
  dispatch(y.dtype, [&]<class T>() {
    parallel_rows(y.rows(), n, [&](int64_t row) {
      softmax_bwd_row(dy.as<const T>() + row * n, y.as<const T>() + row * n, dx.as<T>() + row * n, n);
    });
  });
}

}  // namespace moec::cpu
