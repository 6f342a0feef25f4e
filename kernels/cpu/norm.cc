// RMSNorm and LayerNorm over the last dimension D, alone and of the sum of two values. Statistics are kept
// per row in the accumulation type. A sum is normalised as it is stored, which is what the backward pass
// reads.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"

namespace moec::cpu {
namespace {

/// sum may be a or b.
template <class T, class Acc = Accumulator<T>>
void add_row(const T* a, const T* b, T* sum, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) sum[i] = static_cast<T>(static_cast<Acc>(a[i]) + static_cast<Acc>(b[i]));
}

/// y may be x. Returns 1 / sqrt(mean(x^2) + eps).
template <class T, class Acc = Accumulator<T>>
Acc rmsnorm_row(const T* x, const T* weight, T* y, int64_t n, Acc eps) {
  Acc squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += static_cast<Acc>(x[i]) * static_cast<Acc>(x[i]);
  const Acc rstd = 1 / std::sqrt(squares / static_cast<Acc>(n) + eps);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i)
    y[i] = static_cast<T>(static_cast<Acc>(x[i]) * rstd * static_cast<Acc>(weight[i]));
  return rstd;
}

/// Adds the row's share to dweight.
template <class T, class Acc = Accumulator<T>>
void rmsnorm_bwd_parameters_row(const T* dy, const T* x, Acc rstd, Acc* dweight, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) dweight[i] += static_cast<Acc>(dy[i]) * static_cast<Acc>(x[i]) * rstd;
}

/// Writes dx, which may be dy or dresidual. dresidual may be null.
template <class T, class Acc = Accumulator<T>>
void rmsnorm_bwd_input_row(const T* dy, const T* x, const T* weight, Acc rstd, const T* dresidual, T* dx,
                           int64_t n) {
  Acc dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i)
    dot += static_cast<Acc>(dy[i]) * static_cast<Acc>(weight[i]) * static_cast<Acc>(x[i]);
  const Acc along = dot * rstd * rstd / static_cast<Acc>(n);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Acc g = dy[i], v = x[i];
    const Acc around = dresidual ? static_cast<Acc>(dresidual[i]) : Acc{0};
    dx[i] = static_cast<T>(around + rstd * (g * static_cast<Acc>(weight[i]) - v * along));
  }
}

template <class Acc>
struct Moments {
  Acc mean, rstd;
};

/// y may be x; bias may be null. The variance is a second pass over the row: no cancellation.
template <class T, class Acc = Accumulator<T>>
Moments<Acc> layernorm_row(const T* x, const T* weight, const T* bias, T* y, int64_t n, Acc eps) {
  Acc sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<Acc>(x[i]);
  const Acc mean = sum / static_cast<Acc>(n);
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) {
    const Acc centred = static_cast<Acc>(x[i]) - mean;
    squares += centred * centred;
  }
  const Acc rstd = 1 / std::sqrt(squares / static_cast<Acc>(n) + eps);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Acc offset = bias ? static_cast<Acc>(bias[i]) : Acc{0};
    y[i] = static_cast<T>((static_cast<Acc>(x[i]) - mean) * rstd * static_cast<Acc>(weight[i]) + offset);
  }
  return {mean, rstd};
}

/// Adds the row's shares to dweight and, unless it is null, dbias.
template <class T, class Acc = Accumulator<T>>
void layernorm_bwd_parameters_row(const T* dy, const T* x, Moments<Acc> moments, Acc* dweight, Acc* dbias,
                                  int64_t n) {
  const Acc mean = moments.mean, rstd = moments.rstd;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Acc g = dy[i], normal = (static_cast<Acc>(x[i]) - mean) * rstd;
    dweight[i] += g * normal;
  }
  if (dbias == nullptr) return;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) dbias[i] += static_cast<Acc>(dy[i]);
}

/// Writes dx, which may be dy or dresidual. dresidual may be null.
template <class T, class Acc = Accumulator<T>>
void layernorm_bwd_input_row(const T* dy, const T* x, const T* weight, Moments<Acc> moments,
                             const T* dresidual, T* dx, int64_t n) {
  const Acc mean = moments.mean, rstd = moments.rstd;
  Acc sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < n; ++i) {
    const Acc g = static_cast<Acc>(dy[i]) * static_cast<Acc>(weight[i]);
    sum += g;
    dot += g * (static_cast<Acc>(x[i]) - mean) * rstd;
  }
  const Acc constant = sum / static_cast<Acc>(n), along = dot / static_cast<Acc>(n);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Acc g = dy[i], normal = (static_cast<Acc>(x[i]) - mean) * rstd;
    const Acc around = dresidual ? static_cast<Acc>(dresidual[i]) : Acc{0};
    dx[i] = static_cast<T>(around + rstd * (g * static_cast<Acc>(weight[i]) - constant - normal * along));
  }
}

/// A row of an optional operand, null when it is absent.
template <class T>
const T* row_of(const TensorView& x, int64_t row) {
  return x.present() ? x.as<const T>() + row * x.cols() : nullptr;
}

/// Where the gradient of a parameter goes, and whether what is there stays a part of it.
struct ParameterGradient {
  const TensorView& sum;
  bool accumulates;
};

/// Gradients of weight and, where there is one, bias: sums over the rows, which add_row(row, dweight, dbias)
/// adds to n sums each. Takes the workspace of column_partials_twice.
template <class Acc, class AddRow>
void sum_parameter_gradients(const KernelCall& call, int64_t rows, int64_t n, ParameterGradient weight,
                             ParameterGradient bias, const AddRow& add_row) {
  Acc* weight_partials = call.workspace.as<Acc>();
  Acc* bias_partials = weight_partials + kColumnPartials * n;
  const int64_t pieces = for_column_partials(rows, [&](int64_t piece, int64_t begin, int64_t end) {
    Acc *dweight = weight_partials + piece * n, *dbias = bias_partials + piece * n;
    std::fill_n(dweight, n, Acc{0});
    std::fill_n(dbias, n, Acc{0});
    for (int64_t row = begin; row < end; ++row) add_row(row, dweight, dbias);
  });
  sum_column_partials(weight_partials, pieces, weight.sum, weight.accumulates);
  if (bias.sum.present()) sum_column_partials(bias_partials, pieces, bias.sum, bias.accumulates);
}

/// The gradients of a norm of any number of rows: dx and sums of pieces of the rows, which `workspace` holds,
/// then their sums. `inputs` are those of norm_bwd_partials; `bias.sum` is absent where there is none.
void differentiate(std::vector<TensorView> inputs, const TensorView& dx, ParameterGradient weight,
                   ParameterGradient bias, const TensorView& workspace) {
  const TensorView x = inputs[1];
  TensorView dweight, dbias;
  dweight.data = workspace.data;
  dweight.dtype = x.dtype == fb::DType::F64 ? fb::DType::F64 : fb::DType::F32;
  dweight.rank = 2;
  dweight.shape = {row_pieces(x.rows(), kColumnPartials).count, x.cols()};
  if (bias.sum.present()) {
    dbias = dweight;
    dbias.data = workspace.as<std::byte>() + dweight.bytes();
  }
  norm_bwd_partials({.inputs = std::move(inputs), .outputs = {dx, dweight, dbias}, .workspace = {}});
  const auto sum = [](const TensorView& partials, ParameterGradient gradient) {
    const TensorView previous = gradient.accumulates ? gradient.sum : TensorView{};
    norm_bwd_sum({.inputs = {partials, previous}, .outputs = {gradient.sum}, .workspace = {}});
  };
  sum(dweight, weight);
  if (bias.sum.present()) sum(dbias, bias);
}

}  // namespace

void rmsnorm(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &weight = call.inputs[1], &y = call.outputs[0];
  const int64_t n = x.cols();
  dispatch(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const auto eps = static_cast<Acc>(call.attrs<fb::RmsNormT>().eps);
    Acc* rstd = call.outputs[1].as<Acc>();
    parallel_rows(x.rows(), n, [&](int64_t row) {
      rstd[row] = rmsnorm_row(x.as<const T>() + row * n, weight.as<const T>(), y.as<T>() + row * n, n, eps);
    });
  });
}

void add_rmsnorm(const KernelCall& call) {
  const TensorView &a = call.inputs[0], &b = call.inputs[1], &weight = call.inputs[2];
  const int64_t n = a.cols();
  dispatch(a.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const auto eps = static_cast<Acc>(call.attrs<fb::FusedNormT>().eps);
    parallel_rows(a.rows(), n, [&](int64_t row) {
      T* sum = call.outputs[0].as<T>() + row * n;
      add_row(a.as<const T>() + row * n, b.as<const T>() + row * n, sum, n);
      call.outputs[2].as<Acc>()[row] =
          rmsnorm_row(sum, weight.as<const T>(), call.outputs[1].as<T>() + row * n, n, eps);
    });
  });
}

void rmsnorm_bwd(const KernelCall& call) {
  const std::vector<TensorView>& in = call.inputs;
  const TensorView absent;
  differentiate({in[0], in[1], in[2], absent, in[3], in[5]}, call.outputs[0],
                {call.outputs[1], in[4].present()}, {absent, false}, call.workspace);
}

void layernorm(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &weight = call.inputs[1], &bias = call.inputs[2];
  const int64_t n = x.cols();
  dispatch(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const auto eps = static_cast<Acc>(call.attrs<fb::LayerNormT>().eps);
    parallel_rows(x.rows(), n, [&](int64_t row) {
      const Moments<Acc> moments =
          layernorm_row(x.as<const T>() + row * n, weight.as<const T>(), bias.as<const T>(),
                        call.outputs[0].as<T>() + row * n, n, eps);
      call.outputs[1].as<Acc>()[row] = moments.mean;
      call.outputs[2].as<Acc>()[row] = moments.rstd;
    });
  });
}

void add_layernorm(const KernelCall& call) {
  const TensorView &a = call.inputs[0], &b = call.inputs[1], &weight = call.inputs[2], &bias = call.inputs[3];
  const int64_t n = a.cols();
  dispatch(a.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const auto eps = static_cast<Acc>(call.attrs<fb::FusedNormT>().eps);
    parallel_rows(a.rows(), n, [&](int64_t row) {
      T* sum = call.outputs[0].as<T>() + row * n;
      add_row(a.as<const T>() + row * n, b.as<const T>() + row * n, sum, n);
      const Moments<Acc> moments = layernorm_row(sum, weight.as<const T>(), bias.as<const T>(),
                                                 call.outputs[1].as<T>() + row * n, n, eps);
      call.outputs[2].as<Acc>()[row] = moments.mean;
      call.outputs[3].as<Acc>()[row] = moments.rstd;
    });
  });
}

void layernorm_bwd(const KernelCall& call) {
  const std::vector<TensorView>& in = call.inputs;
  differentiate({in[0], in[1], in[2], in[3], in[4], in[7]}, call.outputs[0],
                {call.outputs[1], in[5].present()}, {call.outputs[2], in[6].present()}, call.workspace);
}

void norm_bwd_input(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &weight = call.inputs[2];
  const TensorView &mean = call.inputs[3], &rstd = call.inputs[4], &dresidual = call.inputs[5];
  const TensorView &state = call.inputs[6], &dropped = call.outputs[1];
  const TensorView& dx = call.outputs[0].present() ? call.outputs[0] : dropped;
  const int64_t n = x.cols();
  dispatch(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    parallel_rows(x.rows(), n, [&](int64_t row) {
      const T *dy_row = dy.as<const T>() + row * n, *x_row = x.as<const T>() + row * n;
      const T* around = row_of<T>(dresidual, row);
      T* dx_row = dx.as<T>() + row * n;
      const Acc row_rstd = rstd.as<const Acc>()[row];
      if (mean.present())
        layernorm_bwd_input_row(dy_row, x_row, weight.as<const T>(),
                                Moments<Acc>{mean.as<const Acc>()[row], row_rstd}, around, dx_row, n);
      else
        rmsnorm_bwd_input_row(dy_row, x_row, weight.as<const T>(), row_rstd, around, dx_row, n);
    });
  });
  if (!dropped.present()) return;
  const auto& attrs = call.attrs<fb::FusedNormT>();
  fb::DropoutT dropout_attrs;
  dropout_attrs.p = attrs.dropout_p;
  dropout_attrs.stream = attrs.dropout_stream;
  run(dropout, {dx, state}, dropped, dropout_attrs);
}

void norm_bwd_parameters(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &mean = call.inputs[2], &rstd = call.inputs[3];
  const int64_t n = x.cols();
  dispatch(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const auto add_row = [&](int64_t row, Acc* dweight, Acc* dbias) {
      const T *dy_row = dy.as<const T>() + row * n, *x_row = x.as<const T>() + row * n;
      const Acc row_rstd = rstd.as<const Acc>()[row];
      if (mean.present())
        layernorm_bwd_parameters_row(dy_row, x_row, Moments<Acc>{mean.as<const Acc>()[row], row_rstd},
                                     dweight, dbias, n);
      else
        rmsnorm_bwd_parameters_row(dy_row, x_row, row_rstd, dweight, n);
    };
    sum_parameter_gradients<Acc>(call, x.rows(), n, {call.outputs[0], call.inputs[4].present()},
                                 {call.outputs[1], call.inputs[5].present()}, add_row);
  });
}

void norm_bwd_partials(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &x = call.inputs[1], &weight = call.inputs[2];
  const TensorView &mean = call.inputs[3], &rstd = call.inputs[4], &dresidual = call.inputs[5];
  const TensorView &dx = call.outputs[0], &dweight = call.outputs[1], &dbias = call.outputs[2];
  const int64_t n = x.cols(), pieces = dweight.rows(), piece_rows = (x.rows() + pieces - 1) / pieces;
  dispatch(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const auto differentiate_row = [&](int64_t row, Acc* dweight_sums, Acc* dbias_sums) {
      const T *dy_row = dy.as<const T>() + row * n, *x_row = x.as<const T>() + row * n;
      const T *row_weight = weight.as<const T>(), *around = row_of<T>(dresidual, row);
      T* dx_row = dx.as<T>() + row * n;
      const Acc row_rstd = rstd.as<const Acc>()[row];
      if (mean.present()) {
        const Moments<Acc> moments{mean.as<const Acc>()[row], row_rstd};
        layernorm_bwd_parameters_row(dy_row, x_row, moments, dweight_sums, dbias_sums, n);
        layernorm_bwd_input_row(dy_row, x_row, row_weight, moments, around, dx_row, n);
      } else {
        rmsnorm_bwd_parameters_row(dy_row, x_row, row_rstd, dweight_sums, n);
        rmsnorm_bwd_input_row(dy_row, x_row, row_weight, row_rstd, around, dx_row, n);
      }
    };
    parallel_ranges(pieces, 1, [&](int64_t piece, int64_t) {
      Acc* dweight_sums = dweight.as<Acc>() + piece * n;
      Acc* dbias_sums = dbias.present() ? dbias.as<Acc>() + piece * n : nullptr;
      std::fill_n(dweight_sums, n, Acc{0});
      if (dbias.present()) std::fill_n(dbias_sums, n, Acc{0});
      const int64_t end = std::min(x.rows(), (piece + 1) * piece_rows);
      for (int64_t row = piece * piece_rows; row < end; ++row)
        differentiate_row(row, dweight_sums, dbias_sums);
    });
  });
}

void norm_bwd_sum(const KernelCall& call) {
  const TensorView& partials = call.inputs[0];
  dispatch_accumulator(partials.dtype, [&]<class Acc>() {
    sum_column_partials(partials.as<const Acc>(), partials.rows(), call.outputs[0], call.inputs[1].present());
  });
}

}  // namespace moec::cpu
