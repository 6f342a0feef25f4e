#include "compiler/ops/ops.h"

namespace moec::ops {

void infer_like_first(OpCall& call) { call.set_output(0, call.input(0)); }

void set_gradient(OpCall& call, int output, std::vector<int64_t> shape) {
  call.set_output(output, {call.precision().gradient, std::move(shape)});
}

TensorType scalar_type(const OpCall& call) { return {call.precision().accumulator(), {}}; }

std::vector<int64_t> with_cols(std::vector<int64_t> shape, int64_t cols) {
  shape.back() = cols;
  return shape;
}

}  // namespace moec::ops
