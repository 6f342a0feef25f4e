// Affine maps of the last dimension: y = x weight^T (+ bias). x[R,I] and y[R,O] stand for any leading
// dimensions.
#include <algorithm>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/types.h"
#include "kernels/workspace.h"

namespace moec::cpu {

void linear(const KernelCall& call) {
  const Matrix x = as_matrix(call.inputs[0]), weight = as_matrix(call.inputs[1]);
  multiply({.a = x, .b = weight.t(), .c = as_matrix(call.outputs[0]), .bias = as_matrix(call.inputs[2])});
}

void linear_bwd_input(const KernelCall& call) {
  const Matrix dy = as_matrix(call.inputs[0]), weight = as_matrix(call.inputs[1]);
  multiply({.a = dy, .b = weight, .c = as_matrix(call.outputs[0])});
}

void linear_bwd_weight(const KernelCall& call) {
  const Matrix dy = as_matrix(call.inputs[0]), x = as_matrix(call.inputs[1]);
  multiply({.a = dy.t(), .b = x, .c = as_matrix(call.outputs[0]), .accumulate = call.inputs[2].present()});
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
