// Cross-entropy and the router's auxiliary losses. A loss is one number of the accumulation type.
#include <cmath>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

template <class T>
Accumulator<T> log_sum_exp(const T* x, int64_t n) {
  const auto stats = softmax_stats(x, n);
  return stats.max + std::log(stats.sum);
}

/// dx = factor * exp(x - lse); dx may be x.
template <class X, class T, class Acc = Accumulator<T>>
void scaled_softmax(const X* x, Acc lse, Acc factor, T* dx, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) dx[i] = static_cast<T>(factor * exp_fast(static_cast<Acc>(x[i]) - lse));
}

int64_t count_valid(const TensorView& targets) {
  const auto* begin = targets.as<const int32_t>();
  return std::count_if(begin, begin + targets.elements(), [](int32_t target) { return target >= 0; });
}

/// Sum in order, so that it does not depend on the threads that made the parts.
double sum_in_order(const double* parts, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += parts[i];
  return sum;
}

/// coefficient * E / denominator of f_e: what count_e * mean probability is multiplied with.
double aux_loss_factor(const KernelCall& call, int64_t tokens, const int32_t* offsets, int64_t experts) {
  const fb::AuxLossT& aux = call.attrs<fb::AuxLossT>();
  const int64_t total = aux.form == fb::AuxLossForm::PerAssignment ? offsets[experts] : tokens;
  return aux.coefficient * static_cast<double>(experts) / static_cast<double>(total);
}

}  // namespace

void cross_entropy(const KernelCall& call) {
  const TensorView &logits = call.inputs[0], &targets = call.inputs[1];
  const int64_t n = logits.cols();
  double* row_losses = call.workspace.as<double>();
  dispatch(logits.dtype, [&]<class T>() {
    auto* lse = call.outputs[1].as<Accumulator<T>>();
    parallel_rows(logits.rows(), n, [&](int64_t row) {
      const T* x = logits.as<const T>() + row * n;
      const int32_t target = targets.as<const int32_t>()[row];
      lse[row] = log_sum_exp(x, n);
      row_losses[row] =
          target < 0 ? 0 : static_cast<double>(lse[row] - static_cast<Accumulator<T>>(x[target]));
    });
  });
  const int64_t valid = count_valid(targets);
  const double sum = sum_in_order(row_losses, logits.rows());
  write_scalar(call.outputs[0], valid == 0 ? 0 : sum / static_cast<double>(valid));
}

/// Rows without a target get zeros.
void cross_entropy_bwd(const KernelCall& call) {
  const TensorView &logits = call.inputs[1], &targets = call.inputs[2], &dlogits = call.outputs[0];
  const int64_t n = logits.cols(), valid = count_valid(targets);
  const double dloss = read_scalar(call.inputs[0]) / static_cast<double>(std::max<int64_t>(1, valid));
  dispatch(logits.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const auto* lse = call.inputs[3].as<const Acc>();
    const auto factor = static_cast<Acc>(dloss);
    parallel_rows(logits.rows(), n, [&](int64_t row) {
      const T* x = logits.as<const T>() + row * n;
      T* dx = dlogits.as<T>() + row * n;
      const int32_t target = targets.as<const int32_t>()[row];
      if (target < 0) {
        std::fill_n(dx, n, T(0));
        return;
      }
      const Acc at_target = factor * std::expm1(static_cast<Acc>(x[target]) - lse[row]);
      scaled_softmax(x, lse[row], factor, dx, n);
      dx[target] = static_cast<T>(at_target);
    });
  });
}

/// One after the other; the workspace holds the losses of rows, then lse.
void cross_entropy_gradient(const KernelCall& call) {
  const TensorView &logits = call.inputs[0], &targets = call.inputs[1];
  TensorView lse;
  lse.data = call.workspace.as<double>() + logits.rows();
  lse.dtype = logits.dtype == fb::DType::F64 ? fb::DType::F64 : fb::DType::F32;
  lse.rank = 1;
  lse.shape[0] = logits.rows();
  cross_entropy({.inputs = {logits, targets},
                 .outputs = {call.outputs[0], lse},
                 .workspace = call.workspace,
                 .op = call.op});
  cross_entropy_bwd({.inputs = {call.inputs[2], logits, targets, lse},
                     .outputs = {call.outputs[1]},
                     .workspace = {},
                     .op = call.op});
}

void aux_loss(const KernelCall& call) {
  const TensorView &probs = call.inputs[0], &loss = call.outputs[0];
  const int32_t* offsets = call.inputs[1].as<const int32_t>();
  const int64_t tokens = probs.rows(), n = probs.cols();
  double* partials = call.workspace.as<double>();
  int64_t pieces = 0;
  dispatch_accumulator(probs.dtype, [&]<class T>() {
    pieces = for_column_partials(tokens, [&](int64_t piece, int64_t begin, int64_t end) {
      double* sums = partials + piece * n;
      std::fill_n(sums, n, 0);
      for (int64_t i = begin * n; i < end * n; i += n)
        for (int64_t e = 0; e < n; ++e) sums[e] += static_cast<double>(probs.as<const T>()[i + e]);
    });
  });
  double sum = 0;
  for (int64_t e = 0; e < n; ++e) {
    double prob = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) prob += partials[piece * n + e];
    sum += (offsets[e + 1] - offsets[e]) * (prob / static_cast<double>(tokens));
  }
  write_scalar(loss, aux_loss_factor(call, tokens, offsets, n) * sum);
}

/// The probabilities' own values do not enter: the loss is linear in them, and the counts have no derivative.
void aux_loss_bwd(const KernelCall& call) {
  const TensorView &probs = call.inputs[1], &dprobs = call.outputs[0];
  const int32_t* offsets = call.inputs[2].as<const int32_t>();
  const int64_t tokens = probs.rows(), n = probs.cols();
  const double factor =
      read_scalar(call.inputs[0]) * aux_loss_factor(call, tokens, offsets, n) / static_cast<double>(tokens);
  dispatch_accumulator(probs.dtype, [&]<class T>() {
    parallel_rows(tokens, n, [&](int64_t row) {
      T* dx = dprobs.as<T>() + row * n;
      for (int64_t e = 0; e < n; ++e)
        dx[e] = static_cast<T>(factor) * static_cast<T>(offsets[e + 1] - offsets[e]);
    });
  });
}

void router_z_loss(const KernelCall& call) {
  const TensorView& logits = call.inputs[0];
  const int64_t n = logits.cols();
  double* squares = call.workspace.as<double>();
  dispatch_accumulator(logits.dtype, [&]<class T>() {
    parallel_rows(logits.rows(), n, [&](int64_t row) {
      const double lse = log_sum_exp(logits.as<const T>() + row * n, n);
      squares[row] = lse * lse;
    });
  });
  const double coefficient = call.attrs<fb::RouterZLossT>().coefficient;
  write_scalar(call.outputs[0],
               coefficient * sum_in_order(squares, logits.rows()) / static_cast<double>(logits.rows()));
}

void router_z_loss_bwd(const KernelCall& call) {
  const TensorView &logits = call.inputs[1], &dlogits = call.outputs[0];
  const int64_t n = logits.cols();
  const double factor = 2 * read_scalar(call.inputs[0]) * call.attrs<fb::RouterZLossT>().coefficient /
                        static_cast<double>(logits.rows());
  dispatch_accumulator(logits.dtype, [&]<class T>() {
    parallel_rows(logits.rows(), n, [&](int64_t row) {
      const T* x = logits.as<const T>() + row * n;
      const T lse = log_sum_exp(x, n);
      scaled_softmax(x, lse, static_cast<T>(factor) * lse, dlogits.as<T>() + row * n, n);
    });
  });
}

}  // namespace moec::cpu
