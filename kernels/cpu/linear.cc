// Affine maps of the last dimension: y = x weight^T (+ bias), alone and with what precedes or follows them.
// x[R,I] and y[R,O] stand for any leading dimensions.
#include <algorithm>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/types.h"
#include "kernels/workspace.h"

namespace moec::cpu {
namespace {

fb::GeluT gelu_attrs(fb::Activation activation) {
  fb::GeluT attrs;
  attrs.tanh = activation == fb::Activation::GeluTanh;
  return attrs;
}

void activate(fb::Activation activation, const TensorView& x, const TensorView& y) {
  if (activation == fb::Activation::Silu) {
    run(silu, {x}, y, fb::SiluT());
  } else {
    run(gelu, {x}, y, gelu_attrs(activation));
  }
}

/// dx = dy times the derivative at x.
void differentiate(fb::Activation activation, const TensorView& dy, const TensorView& x,
                   const TensorView& dx) {
  if (activation == fb::Activation::Silu) {
    run(silu_bwd, {dy, x}, dx, fb::SiluT());
  } else {
    run(gelu_bwd, {dy, x}, dx, gelu_attrs(activation));
  }
}

}  // namespace

void linear(const KernelCall& call) {
  const Matrix x = as_matrix(call.inputs[0]), weight = as_matrix(call.inputs[1]);
  multiply({.a = x, .b = weight.t(), .c = as_matrix(call.outputs[0]), .bias = as_matrix(call.inputs[2])});
}

/// One step after the other: the reference for kernels that save passes over memory.
void fused_linear(const KernelCall& call) {
  const auto& attrs = call.attrs<fb::FusedLinearT>();
  const TensorView &residual = call.inputs[3], &state = call.inputs[4], &y = call.outputs[0];
  const TensorView& z = call.outputs[1].present() ? call.outputs[1] : y;
  const Matrix x = as_matrix(call.inputs[0]), weight = as_matrix(call.inputs[1]);
  multiply({.a = x, .b = weight.t(), .c = as_matrix(z), .bias = as_matrix(call.inputs[2])});
  if (attrs.activation != fb::Activation::None) activate(attrs.activation, z, y);
  if (attrs.dropout_p > 0 && state.present()) {
    fb::DropoutT dropped;
    dropped.p = attrs.dropout_p;
    dropped.stream = attrs.dropout_stream;
    run(dropout, {y, state}, y, dropped);
  }
  if (residual.present()) run(add, {residual, y}, y, fb::AddT());
}

/// As fused_linear.
void linear_rope(const KernelCall& call) {
  const TensorView& y = call.outputs[0];
  linear(call);
  rope({.inputs = {y}, .outputs = {y}, .workspace = {}, .op = call.op});
}

void linear_bwd_input(const KernelCall& call) {
  const Matrix dy = as_matrix(call.inputs[0]), weight = as_matrix(call.inputs[1]);
  multiply({.a = dy, .b = weight, .c = as_matrix(call.outputs[0])});
}

void linear_bwd_weight(const KernelCall& call) {
  const Matrix dy = as_matrix(call.inputs[0]), x = as_matrix(call.inputs[1]);
  multiply({.a = dy.t(), .b = x, .c = as_matrix(call.outputs[0]), .accumulate = call.inputs[2].present()});
}

void fused_linear_bwd_input(const KernelCall& call) {
  const TensorView &z = call.inputs[2], &dx = call.outputs[0];
  linear_bwd_input({.inputs = {call.inputs[0], call.inputs[1]}, .outputs = {dx}, .workspace = {}});
  differentiate(call.attrs<fb::FusedLinearT>().activation, dx, z, dx);
}

void linear_bwd_parameters(const KernelCall& call) {
  const TensorView& dy = call.inputs[0];
  linear_bwd_weight(
      {.inputs = {dy, call.inputs[1], call.inputs[2]}, .outputs = {call.outputs[0]}, .workspace = {}});
  bias_bwd({.inputs = {dy, call.inputs[3]}, .outputs = {call.outputs[1]}, .workspace = call.workspace});
}

/// Ranges of rows are summed to partial sums [kColumnPartials, O] in f64, which are then added in order.
void bias_bwd(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &dbias = call.outputs[0];
  const bool accumulate = call.inputs[1].present();
  const int64_t rows = dy.rows(), cols = dy.cols();
  const int64_t range = std::max<int64_t>((rows + kColumnPartials - 1) / kColumnPartials, 1);
  const int64_t partials = (rows + range - 1) / range;
  auto* sums = call.workspace.as<double>();

  dispatch(dy.dtype, [&]<class T>() {
    parallel_ranges(rows, range, [&](int64_t begin, int64_t end) {
      double* sum = sums + begin / range * cols;
      std::fill_n(sum, cols, 0.0);
      for (int64_t row = begin; row < end; ++row) {
        const T* from = dy.as<const T>() + row * cols;
        for (int64_t col = 0; col < cols; ++col) sum[col] += static_cast<double>(from[col]);
      }
    });
  });
  for (int64_t partial = 1; partial < partials; ++partial) {
    for (int64_t col = 0; col < cols; ++col) sums[col] += sums[partial * cols + col];
  }
  dispatch(dbias.dtype, [&]<class G>() {
    G* out = dbias.as<G>();
    for (int64_t col = 0; col < cols; ++col) {
      const double old = accumulate ? static_cast<double>(out[col]) : 0.0;
      out[col] = static_cast<G>(static_cast<Accumulator<G>>(old + sums[col]));
    }
  });
}

}  // namespace moec::cpu
