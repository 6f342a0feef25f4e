// Top-k routing, a group of threads per token: a warp, or where experts are few a part of one. Logits,
// probabilities and weights are of the accumulation type in every plan.
#include <cmath>

#include "kernels/cuda/aux_loss.cuh"
#include "kernels/cuda/call_run.h"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"

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
template <int kGroup, class T, class Load>
__device__ Choice<T> next_choice(const HeldPlaces<kGroup, Load>& logits, Choice<T> last) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Choice<T> best = {-kInfinity, INT32_MAX};
  logits.for_each([&](int64_t e, T logit) {
    const Choice<T> candidate = {std::isnan(logit) ? -kInfinity : logit, static_cast<int>(e)};
    if (before(last, candidate)) best = First{}(best, candidate);
  });
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
  probs += token * n;
  const auto held = hold_places<kGroup>(n, [logits](int64_t e) { return logits[e]; });
  // A NaN or +inf makes the sum NaN.
  T max = std::numeric_limits<T>::lowest(), sum = 0;
  held.for_each([&](int64_t, T logit) { max = std::fmax(max, logit); });
  max = group_reduce<kGroup>(max, Larger{});
  held.for_each([&](int64_t, T logit) { sum += exponential<T>(logit - max); });
  sum = group_reduce<kGroup>(sum);
  T total = 0;
  Choice<T> choice = {std::numeric_limits<T>::infinity(), -1};
  for (int j = 0; j < k; ++j) {
    choice = next_choice(held, choice);
    const T weight = exponential<T>(choice.logit - max) / sum;
    total += weight;
    if (!exists || lane != j % kGroup) continue;
    weights[j] = weight;
    experts[token * k + j] = choice.expert;
  }
  if (!exists) return;
  if (renormalise)
    for (int j = lane; j < k; j += kGroup) weights[j] /= total;
  held.for_each([&](int64_t e, T logit) { probs[e] = exponential<T>(logit - max) / sum; });
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
  AuxLossGradient aux;
};

/// What a chosen expert's weight has to do with the gradient.
template <class T>
struct Chosen {
  int expert;
  T weight, dweight;
};

/// Never part of a fused multiply-add: the same bits as a product that is stored.
__device__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

/// A probability and its gradient, or with the auxiliary loss the number of rows that it is in proportion to.
template <class T>
struct Probability {
  T value, gradient;
  int count;
};

/// Softmax gives dlogits_e = p_e (g_e - sum_i p_i g_i) for the gradient g of the probabilities. The weights
/// add to g only at the chosen experts, where p_e g_e is w_e (dw_e - sum_i w_i dw_i) after renormalisation,
/// whose sum is zero, and w_e dw_e without.
/// kAuxLoss: the gradient of the probabilities is that of `aux`.
template <int kGroup, bool kAuxLoss, class T>
__global__ void router_bwd_kernel(const __grid_constant__ RouterBwd<T> router) {
  begin_kernel();
  const int64_t token = token_of_group<kGroup>(router.tokens);
  const int n = router.n, k = router.k;
  // All threads of a group hold all choices.
  const auto choices = hold_places<1>(router.dweights ? k : 0, [&router, token, k](int64_t j) {
    const int64_t i = token * k + j;
    return Chosen<T>{router.experts[i], router.weights[i], router.dweights[i]};
  });
  const auto probs = hold_places<kGroup>(n, [&router, token, n](int64_t e) {
    const int64_t i = token * n + e;
    Probability<T> prob = {router.probs[i], 0, 0};
    if constexpr (kAuxLoss)
      prob.count = router.aux.factor.count(static_cast<int>(e));
    else if (router.dprobs)
      prob.gradient = router.dprobs[i];
    return prob;
  });
  const T scale = kAuxLoss ? static_cast<T>(router.aux.scale()) : T{0};
  const auto gradient = [scale](const Probability<T>& prob) {
    return kAuxLoss ? rounded_product(scale, static_cast<T>(prob.count)) : prob.gradient;
  };
  T weight_dot = 0, prob_dot = 0;
  choices.for_each([&](int64_t, const Chosen<T>& chosen) { weight_dot += chosen.weight * chosen.dweight; });
  probs.for_each([&](int64_t, const Probability<T>& prob) { prob_dot += prob.value * gradient(prob); });
  prob_dot = group_reduce<kGroup>(prob_dot);
  if (!group_has_token<kGroup>(router.tokens)) return;
  const T centre = prob_dot + (router.renormalise ? 0 : weight_dot);
  const T weight_centre = router.renormalise ? weight_dot : 0;
  probs.for_each([&](int64_t e, const Probability<T>& prob) {
    T dlogit = prob.value * (gradient(prob) - centre);
    choices.for_each([&](int64_t, const Chosen<T>& chosen) {
      if (chosen.expert == e) dlogit += chosen.weight * (chosen.dweight - weight_centre);
    });
    router.dlogits[token * n + e] = dlogit;
  });
}

/// Returns body.template operator()<kGroup>() for tokens of so many experts.
template <class Body>
cudaError_t with_token_group(int64_t experts, Body&& body) {
  constexpr int64_t kFewExperts = 32;
  return experts <= kFewExperts ? body.template operator()<4>() : body.template operator()<kWarp>();
}

cudaError_t differentiate(const KernelCall& call, const AuxLossGradient* aux, const CudaContext& context) {
  const TensorView &probs = call.inputs[2], &experts = call.inputs[3];
  return with_accumulator_type(probs.dtype, [&]<class T>() {
    const RouterBwd<T> router = {.dweights = call.inputs[0].as<const T>(),
                                 .dprobs = call.inputs[1].as<const T>(),
                                 .probs = probs.as<const T>(),
                                 .experts = experts.as<const int32_t>(),
                                 .weights = call.inputs[4].as<const T>(),
                                 .dlogits = call.outputs[0].as<T>(),
                                 .tokens = probs.rows(),
                                 .n = static_cast<int>(probs.cols()),
                                 .k = static_cast<int>(experts.cols()),
                                 .renormalise = call.attrs<fb::RouterT>().renormalise,
                                 .aux = aux ? *aux : AuxLossGradient()};
    return with_token_group(probs.cols(), [&]<int kGroup>() {
      const auto kernel = aux ? router_bwd_kernel<kGroup, true, T> : router_bwd_kernel<kGroup, false, T>;
      return launch(context, kernel, group_blocks<kGroup>(router.tokens), kThreads, router);
    });
  });
}

cudaError_t enqueue_with_aux_loss(std::span<const KeyedCall> calls, const CudaContext& context) {
  const AuxLossGradient aux(*calls[0].call);
  return differentiate(*calls[1].call, &aux, context);
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
  return differentiate(call, nullptr, context);
}

/// aux_loss_bwd, router_bwd: the gradient of the probabilities, in whose place that of the logits comes, is
/// the same for all tokens.
CallRun router_bwd_run(std::span<const KeyedCall> sequence, const CudaContext&) {
  if (!begins_with(sequence, {"aux_loss_bwd", "router_bwd"})) return {};
  const TensorView& dprobs = sequence[0].call->outputs[0];
  const KernelCall& router = *sequence[1].call;
  if (router.inputs[1].data != dprobs.data || router.outputs[0].data != dprobs.data) return {};
  return {2, {{enqueue_with_aux_loss, operands_of(sequence.first(2))}}};
}

}  // namespace moec::cuda
