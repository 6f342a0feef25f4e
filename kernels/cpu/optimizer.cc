#include "kernels/adamw_step.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"
#include "kernels/master_weight.h"
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

template <class T, class Grad, class Acc = Accumulator<T>>
void adamw_range(AdamWStep<Acc> step, T* weight, const Grad* grad, Acc* moment1, Acc* moment2, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    Acc m1 = moment1[i], m2 = moment2[i];
    weight[i] = static_cast<T>(step.update(static_cast<Acc>(weight[i]), static_cast<Acc>(grad[i]), m1, m2));
    moment1[i] = m1;
    moment2[i] = m2;
  }
}

/// The weights are f32 masters kept as pairs of 16 bits.
template <class Grad>
void adamw_range(AdamWStep<float> step, bf16* weight, uint16_t* remainder, const Grad* grad, float* moment1,
                 float* moment2, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const auto master = std::bit_cast<float>(join_master(weight[i].bits, remainder[i]));
    float m1 = moment1[i], m2 = moment2[i];
    const float updated = step.update(master, static_cast<float>(grad[i]), m1, m2);
    const SplitMaster split = split_master(std::bit_cast<uint32_t>(updated));
    weight[i].bits = split.weight;
    remainder[i] = split.remainder;
    moment1[i] = m1;
    moment2[i] = m2;
  }
}

}  // namespace

void grad_norm(const KernelCall& call) {
  double sum = 0;
  for (size_t i = 1; i < call.inputs.size(); ++i)
    sum += sum_of_squares(call.inputs[i], call.workspace.as<double>());
  finish_grad_norm(*call.outputs[0].as<TrainState>(), sum, call.attrs<fb::GradNormT>().max_norm);
}

void adamw(const KernelCall& call) {
  const TensorView &param = call.outputs[0], &grad = call.inputs[1], &remainder = call.outputs[3];
  const TrainState& state = *call.inputs[5].as<const TrainState>();
  if (state.non_finite) return;
  dispatch(param.dtype, [&]<class T>() {
    dispatch(grad.dtype, [&]<class Grad>() {
      using Acc = Accumulator<T>;
      const AdamWStep<Acc> step(call.attrs<fb::AdamWT>(), state);
      parallel_ranges(param.elements(), kPieceElements, [&](int64_t begin, int64_t end) {
        T* weight = param.as<T>() + begin;
        const Grad* g = grad.as<const Grad>() + begin;
        Acc *m1 = call.outputs[1].as<Acc>() + begin, *m2 = call.outputs[2].as<Acc>() + begin;
        if constexpr (std::is_same_v<T, bf16>) {
          if (remainder.present()) {
            adamw_range(step, weight, remainder.as<uint16_t>() + begin, g, m1, m2, end - begin);
            return;
          }
        }
        adamw_range(step, weight, g, m1, m2, end - begin);
      });
    });
  });
}

}  // namespace moec::cpu
