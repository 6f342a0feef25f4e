// For the files of this folder: the definitions that op_table.def names, and what several families share.
#pragma once

#include "compiler/op.h"

namespace moec::ops {

#define OP(name) extern const OpDef name;
#include "compiler/ops/op_table.def"
#undef OP

/// Output 0 has the type of input 0.
void infer_like_first(OpCall& call);
/// Output 0 is a parameter's gradient of this shape.
void set_gradient(OpCall& call, int output, std::vector<int64_t> shape);
/// Output 0 has this type, to which the optional input `residual` is added.
void set_output_with_residual(OpCall& call, const TensorType& y, int residual);
/// A one-element loss in the accumulation type.
TensorType scalar_type(const OpCall& call);
/// `shape` with its last dimension replaced.
std::vector<int64_t> with_cols(std::vector<int64_t> shape, int64_t cols);

template <int kPerElement>
double flops_per_element(const OpCall& call) {
  return kPerElement * static_cast<double>(call.output(0).elements());
}

}  // namespace moec::ops
