// Top-k routing. Logits, probabilities and weights are of the accumulation type in every plan.
#include <limits>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

/// experts[k] = the indices of the k largest logits in falling order, ties by rising index; a NaN counts as
/// -inf, so that there are always k different ones.
template <class T>
void select_top_k(const T* logits, int64_t n, int32_t* experts, int64_t k) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  T last = kInfinity;
  int64_t last_expert = -1;
  for (int64_t j = 0; j < k; ++j) {
    T best = -kInfinity;
    int64_t best_expert = -1;
    for (int64_t e = 0; e < n; ++e) {
      const T value = logits[e] == logits[e] ? logits[e] : -kInfinity;
      const bool open = value < last || (value == last && e > last_expert);
      if (open && (best_expert < 0 || value > best)) {
        best = value;
        best_expert = e;
      }
    }
    experts[j] = static_cast<int32_t>(best_expert);
    last = best;
    last_expert = best_expert;
  }
}

/// probs may be the logits.
template <class T>
void router_row(const T* logits, int64_t n, int64_t k, bool renormalise, T* weights, int32_t* experts,
                T* probs) {
  select_top_k(logits, n, experts, k);
  const SoftmaxStats<T> stats = softmax_stats(logits, n);
  for (int64_t e = 0; e < n; ++e) probs[e] = exp_fast(logits[e] - stats.max) / stats.sum;
  T total = 0;
  for (int64_t j = 0; j < k; ++j) total += weights[j] = probs[experts[j]];
  if (!renormalise) return;
  for (int64_t j = 0; j < k; ++j) weights[j] /= total;
}

/// Derivative of router_row: dweights and dprobs may be null, dlogits may be dprobs or probs.
///
/// Softmax gives dlogits_e = p_e (g_e - sum_i p_i g_i) for the gradient g of the probabilities. The weights
/// add to g only at the chosen experts, where p_e g_e is w_e (dw_e - sum_i w_i dw_i) after renormalisation,
/// whose sum is zero, and w_e dw_e without.
template <class T>
void router_bwd_row(const T* dweights, const T* dprobs, const T* probs, const int32_t* experts,
                    const T* weights, int64_t n, int64_t k, bool renormalise, T* dlogits) {
  T weight_dot = 0, prob_dot = 0;
  if (dweights)
    for (int64_t j = 0; j < k; ++j) weight_dot += weights[j] * dweights[j];
  if (dprobs)
    for (int64_t e = 0; e < n; ++e) prob_dot += probs[e] * dprobs[e];
  const T centre = prob_dot + (renormalise ? 0 : weight_dot);
  for (int64_t e = 0; e < n; ++e) dlogits[e] = probs[e] * ((dprobs ? dprobs[e] : 0) - centre);
  if (!dweights) return;
  const T weight_centre = renormalise ? weight_dot : 0;
  for (int64_t j = 0; j < k; ++j) dlogits[experts[j]] += weights[j] * (dweights[j] - weight_centre);
}

/// Row `row` of an optional tensor.
template <class T>
const T* row_or_null(const TensorView& x, int64_t row) {
  return x.present() ? x.as<const T>() + row * x.cols() : nullptr;
}

}  // namespace

void router(const KernelCall& call) {
  const TensorView &logits = call.inputs[0], &experts = call.outputs[1];
  const bool renormalise = call.attrs<fb::RouterT>().renormalise;
  const int64_t n = logits.cols(), k = experts.cols();
  dispatch_accumulator(logits.dtype, [&]<class T>() {
    parallel_rows(logits.rows(), n, [&](int64_t row) {
      router_row(logits.as<const T>() + row * n, n, k, renormalise, call.outputs[0].as<T>() + row * k,
                 experts.as<int32_t>() + row * k, call.outputs[2].as<T>() + row * n);
    });
  });
}

void router_bwd(const KernelCall& call) {
  const TensorView &probs = call.inputs[2], &experts = call.inputs[3];
  const bool renormalise = call.attrs<fb::RouterT>().renormalise;
  const int64_t n = probs.cols(), k = experts.cols();
  dispatch_accumulator(probs.dtype, [&]<class T>() {
    parallel_rows(probs.rows(), n, [&](int64_t row) {
      router_bwd_row(row_or_null<T>(call.inputs[0], row), row_or_null<T>(call.inputs[1], row),
                     probs.as<const T>() + row * n, experts.as<const int32_t>() + row * k,
                     call.inputs[4].as<const T>() + row * k, n, k, renormalise,
                     call.outputs[0].as<T>() + row * n);
    });
  });
}

}  // namespace moec::cpu
