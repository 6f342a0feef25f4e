#include "kernels/workspace.h"

#include <algorithm>

namespace moec::workspace {
namespace {

constexpr uint64_t kF64 = 8;

/// The first present operand of rank two or more: the matrix that a reduction kernel reads.
const TensorView& matrix(const KernelCall& call) {
  return *std::find_if(call.inputs.begin(), call.inputs.end(),
                       [](const TensorView& t) { return t.rank >= 2; });
}

}  // namespace

uint64_t none(const KernelCall&) { return 0; }

uint64_t embedding_bwd(const KernelCall& call) {
  const int64_t tokens = call.inputs[0].elements();
  const int64_t blocks = (tokens + kExpertIndexBlock - 1) / kExpertIndexBlock;
  return 4 * static_cast<uint64_t>(2 * tokens + 2 * call.outputs[0].rows() + blocks * kTokenDigits);
}

uint64_t column_partials(const KernelCall& call) {
  return kF64 * static_cast<uint64_t>(kColumnPartials * matrix(call).cols());
}

uint64_t column_partials_twice(const KernelCall& call) { return 2 * column_partials(call); }

uint64_t row_partials(const KernelCall& call) {
  return 2 * kF64 * static_cast<uint64_t>(matrix(call).rows());
}

uint64_t attention_bwd(const KernelCall& call) {
  const TensorView& lse = call.inputs[3];
  return kF64 * static_cast<uint64_t>(lse.rows() * attention_row_stride(lse.cols()));
}

uint64_t expert_index(const KernelCall& call) {
  const int64_t blocks = (call.inputs[0].elements() + kExpertIndexBlock - 1) / kExpertIndexBlock;
  return 4 * static_cast<uint64_t>(std::max<int64_t>(blocks, 1) * (call.outputs[0].elements() - 1));
}

uint64_t grad_norm(const KernelCall& call) {
  return 2 * kF64 * static_cast<uint64_t>(kRangePartials) * (call.inputs.size() - 1);
}

}  // namespace moec::workspace
