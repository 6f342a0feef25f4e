// Top-k routing, a group of threads per token: a warp, or where experts are few a part of one. Logits,
// probabilities and weights are of the accumulation type in every plan.
#include <cmath>

#include "kernels/cuda/softmax_stats.cuh"

namespace moec::cuda {
namespace {

/// An expert and its logit; before() orders by falling logit, then by rising expert. No candidate: expert
/// INT_MAX.
template <class T>
struct Choice {
  T logit;
  int expert;
};

template <class T>
__device__ bool before(Choice<T> a, Choice<T> b) {
  return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

struct First {
  template <class T>
  __device__ Choice<T> operator()(Choice<T> a, Choice<T> b) const {
    return before(b, a) ? b : a;
  }
};

template <class T>
__device__ inline Choice<T> shuffle_xor(Choice<T> choice, int mask) {
  return {cuda::shuffle_xor(choice.logit, mask), cuda::shuffle_xor(choice.expert, mask)};
}

/// The choice that follows `last`; a NaN counts as -inf, so that there are always as many choices as experts.
template <int kGroup, class T>
__device__ Choice<T> next_choice(const T* logits, int experts, Choice<T> last) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Choice<T> best = {-kInfinity, INT32_MAX};
  for (int e = group_lane<kGroup>(); e < experts; e += kGroup) {
    const Choice<T> candidate = {std::isnan(logits[e]) ? -kInfinity : logits[e], e};
    if (before(last, candidate)) best = First{}(best, candidate);
  }
  return group_reduce<kGroup>(best, First{});
}

/// The token of this thread's group. Groups behind the last token, in whose warp others may be, do that one
/// again and write nothing.
template <int kGroup>
__device__ int64_t token_of_group(int64_t tokens) {
  return min(group_row<kGroup>(), tokens - 1);
}
template <int kGroup>
__device__ bool group_has_token(int64_t tokens) {
  return group_row<kGroup>() < tokens;
}

/// probs may be the logits.
template <int kGroup, class T>
__global__ void router_kernel(const T* logits, T* weights, int32_t* experts, T* probs, int64_t tokens, int n,
                              int k, bool renormalise) {
  begin_kernel();
  const int64_t token = token_of_group<kGroup>(tokens);
  const bool exists = group_has_token<kGroup>(tokens);
  const int lane = group_lane<kGroup>();
  logits += token * n;
  weights += token * k;
  const SoftmaxStats<T> stats = softmax_stats<1, kGroup>(logits, n);
  T total = 0;
  Choice<T> choice = {std::numeric_limits<T>::infinity(), -1};
  for (int j = 0; j < k; ++j) {
    choice = next_choice<kGroup>(logits, n, choice);
    const T weight = exponential<T>(choice.logit - stats.max) / stats.sum;
    total += weight;
    if (!exists || lane != j % kGroup) continue;
    weights[j] = weight;
    experts[token * k + j] = choice.expert;
  }
  if (!exists) return;
  if (renormalise)
    for (int j = lane; j < k; j += kGroup) weights[j] /= total;
  for (int e = lane; e < n; e += kGroup)
    probs[token * n + e] = exponential<T>(logits[e] - stats.max) / stats.sum;
}

template <class T>
struct RouterBwd {
  const T* dweights;  // [tokens, k], may be null
  const T* dprobs;    // [tokens, n], may be null
  const T* probs;     // [tokens, n]
  const int32_t* experts;
  const T* weights;
  T* dlogits;  // may be dprobs or probs
  int64_t tokens;
  int n, k;
  bool renormalise;
};

/// Softmax gives dlogits_e = p_e (g_e - sum_i p_i g_i) for the gradient g of the probabilities. The weights
/// add to g only at the chosen experts, where p_e g_e is w_e (dw_e - sum_i w_i dw_i) after renormalisation,
/// whose sum is zero, and w_e dw_e without.
template <int kGroup, class T>
__global__ void router_bwd_kernel(const RouterBwd<T> router) {
  begin_kernel();
  const int64_t token = token_of_group<kGroup>(router.tokens);
  const int lane = group_lane<kGroup>(), n = router.n, k = router.dweights ? router.k : 0;
  const T* dweights = router.dweights + token * k;
  const T* weights = router.weights + token * router.k;
  const int32_t* experts = router.experts + token * router.k;
  const T* dprobs = router.dprobs ? router.dprobs + token * n : nullptr;
  const T* probs = router.probs + token * n;

  T weight_dot = 0, prob_dot = 0;
  for (int j = lane; j < k; j += kGroup) weight_dot += weights[j] * dweights[j];
  if (dprobs)
    for (int e = lane; e < n; e += kGroup) prob_dot += probs[e] * dprobs[e];
  weight_dot = group_reduce<kGroup>(weight_dot);
  prob_dot = group_reduce<kGroup>(prob_dot);
  if (!group_has_token<kGroup>(router.tokens)) return;
  const T centre = prob_dot + (router.renormalise ? 0 : weight_dot);
  const T weight_centre = router.renormalise ? weight_dot : 0;
  for (int e = lane; e < n; e += kGroup) {
    T dlogit = probs[e] * ((dprobs ? dprobs[e] : 0) - centre);
    for (int j = 0; j < k; ++j)
      if (experts[j] == e) dlogit += weights[j] * (dweights[j] - weight_centre);
    router.dlogits[token * n + e] = dlogit;
  }
}

/// Returns body.template operator()<kGroup>() for tokens of so many experts.
template <class Body>
cudaError_t with_token_group(int64_t experts, Body&& body) {
  constexpr int64_t kFewExperts = 32;
  return experts <= kFewExperts ? body.template operator()<4>() : body.template operator()<kWarp>();
}

}  // namespace

cudaError_t router(const KernelCall& call, const CudaContext& context) {
  const TensorView &logits = call.inputs[0], &weights = call.outputs[0];
  return with_accumulator_type(logits.dtype, [&]<class T>() {
    return with_token_group(logits.cols(), [&]<int kGroup>() {
      return launch(context, router_kernel<kGroup, T>, group_blocks<kGroup>(logits.rows()), kThreads,
                    logits.as<const T>(), weights.as<T>(), call.outputs[1].as<int32_t>(),
                    call.outputs[2].as<T>(), logits.rows(), static_cast<int>(logits.cols()),
                    static_cast<int>(weights.cols()), call.attrs<fb::RouterT>().renormalise);
    });
  });
}

cudaError_t router_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &probs = call.inputs[2], &experts = call.inputs[3];
  return with_accumulator_type(probs.dtype, [&]<class T>() {
    const RouterBwd<T> router = {call.inputs[0].as<const T>(),
                                 call.inputs[1].as<const T>(),
                                 probs.as<const T>(),
                                 experts.as<const int32_t>(),
                                 call.inputs[4].as<const T>(),
                                 call.outputs[0].as<T>(),
                                 probs.rows(),
                                 static_cast<int>(probs.cols()),
                                 static_cast<int>(experts.cols()),
                                 call.attrs<fb::RouterT>().renormalise};
    return with_token_group(probs.cols(), [&]<int kGroup>() {
      return launch(context, router_bwd_kernel<kGroup, T>, group_blocks<kGroup>(router.tokens), kThreads,
                    router);
    });
  });
}

}  // namespace moec::cuda
