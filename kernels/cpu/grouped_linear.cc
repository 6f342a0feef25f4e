// Affine maps with one weight per expert. Rows offsets[e] to offsets[e+1] belong to expert e; rows from the
// last offset on are padding, which is neither read nor written.
#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/types.h"
#include "kernels/gradient_squares.h"
#include "kernels/workspace.h"

namespace moec::cpu {
namespace {

/// The experts' parts of the operands of a grouped kernel.
class Experts {
 public:
  explicit Experts(const TensorView& offsets)
      : count_(offsets.dim(0) - 1), offsets_(offsets.as<const int32_t>()) {}

  int64_t count() const { return count_; }
  int64_t begin(int64_t expert) const { return offsets_[expert]; }
  int64_t end(int64_t expert) const { return offsets_[expert + 1]; }

  /// Of rows[R,N]: the expert's rows.
  Matrix rows(const TensorView& rows, int64_t expert) const {
    return as_matrix(rows).block(begin(expert), 0, end(expert) - begin(expert), rows.cols());
  }
  /// Of weight[E,O,I], its [O,I]; of bias[E,O], its row [1,O]; of an absent operand, nothing.
  Matrix parameter(const TensorView& parameter, int64_t expert) const {
    if (!parameter.present()) return {};
    const int64_t rows = parameter.rows() / count_;
    return as_matrix(parameter).block(expert * rows, 0, rows, parameter.cols());
  }

 private:
  int64_t count_;
  const int32_t* offsets_;
};

/// Computes product(expert) for all experts.
template <class MakeProduct>
void multiply_experts(const Experts& experts, MakeProduct&& product) {
  std::vector<Product> products;
  for (int64_t expert = 0; expert < experts.count(); ++expert) products.push_back(product(expert));
  multiply(products);
}

/// squares[E, pieces of rows, pieces of columns] of dweight[E,N,K].
void sum_squares(const TensorView& dweight, const TensorView& squares) {
  const int64_t rows = dweight.dim(1), cols = dweight.dim(2), row_pieces = squares.dim(1),
                col_pieces = squares.dim(2);
  auto* sums = squares.as<double>();
  dispatch(dweight.dtype, [&]<class T>() {
    parallel_for(dweight.dim(0) * row_pieces, [&](int64_t band) {
      const int64_t expert = band / row_pieces, begin = band % row_pieces * kSquaresRows;
      std::fill_n(sums + band * col_pieces, col_pieces, 0.0);
      for (int64_t row = begin; row < std::min(rows, begin + kSquaresRows); ++row) {
        const T* values = dweight.as<const T>() + (expert * rows + row) * cols;
        for (int64_t col = 0; col < cols; ++col) {
          const double value = values[col];
          sums[band * col_pieces + col / kSquaresCols] += value * value;
        }
      }
    });
  });
}

}  // namespace

void grouped_linear(const KernelCall& call) {
  const TensorView &rows = call.inputs[0], &weight = call.inputs[2], &bias = call.inputs[3],
                   &y = call.outputs[0];
  const Experts experts(call.inputs[1]);
  multiply_experts(experts, [&](int64_t e) {
    return Product{.a = experts.rows(rows, e),
                   .b = experts.parameter(weight, e).t(),
                   .c = experts.rows(y, e),
                   .bias = experts.parameter(bias, e)};
  });
}

void grouped_linear_bwd_input(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &weight = call.inputs[2], &drows = call.outputs[0];
  const Experts experts(call.inputs[1]);
  multiply_experts(experts, [&](int64_t e) {
    return Product{.a = experts.rows(dy, e), .b = experts.parameter(weight, e), .c = experts.rows(drows, e)};
  });
}

void grouped_linear_swiglu(const KernelCall& call) {
  const TensorView &h = call.outputs[0], &y = call.outputs[1];
  grouped_linear({.inputs = call.inputs, .outputs = {h}, .op = call.op});
  swiglu({.inputs = {h}, .outputs = {y}});
}

void grouped_linear_bwd_input_swiglu(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &offsets = call.inputs[1], &weight = call.inputs[2],
                   &h = call.inputs[3], &dh = call.outputs[0], &y = call.outputs[1];
  const TensorView activation = activation_gradient(call);
  grouped_linear_bwd_input({.inputs = {dy, offsets, weight}, .outputs = {activation}, .op = call.op});
  swiglu_bwd({.inputs = {activation, h}, .outputs = {dh, y}});
}

void grouped_linear_bwd_weight(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &rows = call.inputs[1], &dweight = call.outputs[0];
  const bool accumulate = call.inputs[3].present();
  const Experts experts(call.inputs[2]);
  multiply_experts(experts, [&](int64_t e) {
    return Product{.a = experts.rows(dy, e).t(),
                   .b = experts.rows(rows, e),
                   .c = experts.parameter(dweight, e),
                   .accumulate = accumulate};
  });
  if (call.outputs[1].present()) sum_squares(dweight, call.outputs[1]);
}

/// Each piece is a range of columns of one expert, summed over its rows in order in f64.
void grouped_bias_bwd(const KernelCall& call) {
  constexpr int64_t kColumns = 64;
  const TensorView &dy = call.inputs[0], &dbias = call.outputs[0];
  const Experts experts(call.inputs[1]);
  const bool accumulate = call.inputs[2].present();
  const int64_t cols = dy.cols(), pieces = (cols + kColumns - 1) / kColumns;

  dispatch(dy.dtype, [&]<class T>() {
    dispatch(dbias.dtype, [&]<class G>() {
      parallel_for(experts.count() * pieces, [&](int64_t piece) {
        const int64_t expert = piece / pieces, begin = piece % pieces * kColumns;
        const int64_t count = std::min(kColumns, cols - begin);
        std::array<double, kColumns> sum{};
        G* out = dbias.as<G>() + expert * cols + begin;
        if (accumulate) std::copy_n(out, count, sum.begin());
        for (int64_t row = experts.begin(expert); row < experts.end(expert); ++row) {
          const T* from = dy.as<const T>() + row * cols + begin;
          for (int64_t col = 0; col < count; ++col)
            sum[static_cast<size_t>(col)] += static_cast<double>(from[col]);
        }
        for (int64_t col = 0; col < count; ++col) {
          out[col] = static_cast<G>(static_cast<Accumulator<G>>(sum[static_cast<size_t>(col)]));
        }
      });
    });
  });
}

}  // namespace moec::cpu
