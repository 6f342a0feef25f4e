#include "compiler/ops/ops.h"

namespace moec::ops {

void infer_like_first(OpCall& call) { call.set_output(0, call.input(0)); }

void set_gradient(OpCall& call, int output, std::vector<int64_t> shape) {
  call.set_output(output, {call.precision().gradient, std::move(shape)});
}

void set_output_with_residual(OpCall& call, const TensorType& y, int residual) {
  if (call.has_input(residual))
    call.require(call.input(residual) == y, "residual {} is not like {}", call.input(residual).to_string(),
                 y.to_string());
  call.set_output(0, y);
}

TensorType scalar_type(const OpCall& call) { return {call.precision().accumulator(), {}}; }

std::vector<int64_t> with_cols(std::vector<int64_t> shape, int64_t cols) {
  shape.back() = cols;
  return shape;
}

}  // namespace moec::ops
