#include <numeric>

#include "kernels/adamw_step.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"
#include "kernels/master_weight.h"
#include "kernels/stochastic_round.h"
#include "kernels/train_step.h"

namespace moec::cpu {
namespace {

template <class T>
double sum_of_squares(const T* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const double value = x[i];
    sum += value * value;
  }
  return sum;
}

/// The sum over at most kRangePartials pieces of a gradient range, added in order.
double sum_of_squares(const TensorView& grad, double* partials) {
  const int64_t n = grad.elements();
  const int64_t grain = std::max(kPieceElements, (n + kRangePartials - 1) / kRangePartials);
  dispatch(grad.dtype, [&]<class T>() {
    parallel_ranges(n, grain, [&](int64_t begin, int64_t end) {
      partials[begin / grain] = sum_of_squares(grad.as<const T>() + begin, end - begin);
    });
  });
  double sum = 0;
  for (int64_t piece = 0; piece * grain < n; ++piece) sum += partials[piece];
  return sum;
}

/// Weights that are kept as they are computed with.
template <class Acc>
struct OwnWeights {
  using Value = Acc;
  Acc* weight;

  Acc load(int64_t i) const { return weight[i]; }
  void store(int64_t i, Acc value) const { weight[i] = value; }
};

/// bf16 weights and the remainders of their f32 masters.
struct SplitWeights {
  using Value = float;
  bf16* weight;
  uint16_t* remainder;

  float load(int64_t i) const { return std::bit_cast<float>(join_master(weight[i].bits, remainder[i])); }
  void store(int64_t i, float value) const {
    const SplitMaster split = split_master(std::bit_cast<uint32_t>(value));
    weight[i].bits = split.weight;
    remainder[i] = split.remainder;
  }
};

/// f16 weights beside their f32 masters.
struct CopiedWeights {
  using Value = float;
  f16* weight;
  float* master;

  float load(int64_t i) const { return master[i]; }
  void store(int64_t i, float value) const {
    master[i] = value;
    weight[i] = static_cast<f16>(value);
  }
};

/// Calls body(weights), masters being the remainders, the f32 weights, or absent.
template <class Body>
void with_weights(const TensorView& weight, const TensorView& master, Body&& body) {
  switch (weight.dtype) {
    case fb::DType::F32:
      return body(OwnWeights<float>{weight.as<float>()});
    case fb::DType::F64:
      return body(OwnWeights<double>{weight.as<double>()});
    case fb::DType::BF16:
      return body(SplitWeights{weight.as<bf16>(), master.as<uint16_t>()});
    case fb::DType::F16:
      return body(CopiedWeights{weight.as<f16>(), master.as<float>()});
    default:
      throw std::logic_error("weights are f32, f64, bf16 or f16");
  }
}

/// `noise` rounds bf16 moments, and only those.
template <class Moment, class Acc>
Moment to_moment(Acc value, uint32_t noise) {
  if constexpr (std::is_same_v<Moment, bf16>) {
    bf16 rounded;
    rounded.bits = round_stochastically(std::bit_cast<uint32_t>(value), noise);
    return rounded;
  } else {
    return value;
  }
}

/// Calls body.template operator()<Moment>() for moments of computations in Acc.
template <class Acc, class Body>
void with_moments(fb::DType dtype, Body&& body) {
  if constexpr (std::is_same_v<Acc, float>)
    if (dtype == fb::DType::BF16) return body.template operator()<bf16>();
  body.template operator()<Acc>();
}

/// The words of the elements [begin, end); begin is a multiple of 4.
void make_words(const MomentNoise& noise, int64_t begin, int64_t end, uint32_t* words) {
  for (int64_t i = begin; i < end; i += 4) {
    const RandomBlock block = noise.block(static_cast<uint64_t>(i / 4));
    for (int64_t j = i; j < std::min(end, i + 4); ++j) words[j - begin] = block.word[j - i];
  }
}

/// What an update reads and writes besides the weights; the ranges are as long as theirs.
template <class Grad, class Moment>
struct Ranges {
  const Grad* grad;
  Moment* moment1;
  Moment* moment2;
};

/// Updates the elements [begin, end). words[i - begin] rounds the moments of element i, where they are bf16.
template <class Weights, class Grad, class Moment, class Acc = typename Weights::Value>
void adamw_range(AdamWStep<Acc> step, Weights weights, Ranges<Grad, Moment> ranges, const uint32_t* words,
                 int64_t begin, int64_t end) {
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t word = std::is_same_v<Moment, bf16> ? words[i - begin] : 0;
    Acc m1 = ranges.moment1[i], m2 = ranges.moment2[i];
    weights.store(i, step.update(weights.load(i), static_cast<Acc>(ranges.grad[i]), m1, m2));
    ranges.moment1[i] = to_moment<Moment>(m1, word & 0xffff);
    ranges.moment2[i] = to_moment<Moment>(m2, word >> 16);
  }
}

}  // namespace

void grad_norm(const KernelCall& call) {
  const TensorView& squares = call.inputs[1];
  double sum = 0;
  if (squares.present())
    sum = std::accumulate(squares.as<double>(), squares.as<double>() + squares.elements(), 0.0);
  for (size_t i = 2; i < call.inputs.size(); ++i)
    sum += sum_of_squares(call.inputs[i], call.workspace.as<double>());
  finish_grad_norm(*call.outputs[0].as<TrainState>(), sum, call.attrs<fb::GradNormT>().max_norm);
}

void adamw(const KernelCall& call) {
  const TensorView &param = call.outputs[0], &grad = call.inputs[1];
  const TensorView &moment1 = call.outputs[1], &moment2 = call.outputs[2], &master = call.outputs[3];
  const TrainState& state = *call.inputs[5].as<const TrainState>();
  const fb::AdamWT& attrs = call.attrs<fb::AdamWT>();
  if (state.non_finite) return;
  with_weights(param, master, [&]<class Weights>(Weights weights) {
    using Acc = typename Weights::Value;
    const AdamWStep<Acc> step(attrs, state);
    dispatch(grad.dtype, [&]<class Grad>() {
      with_moments<Acc>(moment1.dtype, [&]<class Moment>() {
        const Ranges<Grad, Moment> ranges{grad.as<const Grad>(), moment1.as<Moment>(), moment2.as<Moment>()};
        parallel_ranges(param.elements(), kPieceElements, [&](int64_t begin, int64_t end) {
          constexpr int64_t kStrip = 1024;  // whose words are made together
          for (; begin < end; begin += kStrip) {
            const int64_t stop = std::min(end, begin + kStrip);
            uint32_t words[kStrip];
            if constexpr (std::is_same_v<Moment, bf16>) make_words({attrs, state}, begin, stop, words);
            adamw_range(step, weights, ranges, words, begin, stop);
          }
        });
      });
    });
  });
}

}  // namespace moec::cpu
