#include "kernels/workspace.h"

#include <algorithm>

namespace moec {
namespace {

constexpr int64_t kMostLogitsBytes = int64_t{512} << 20;
constexpr int64_t kMostLogitsRows = 8192;
constexpr int64_t kRowMultiple = 128;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

LogitsChunks logits_chunks(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &weight = call.inputs[1], &dweight = call.outputs[2];
  const int64_t element = dtype_size(x.dtype);
  LogitsChunks chunks = {};
  chunks.classes = element == 2 ? round_up(weight.rows(), 8) : weight.rows();
  chunks.stride = element == 2 ? round_up(weight.rows(), 64) : weight.rows();
  const int64_t fit = kMostLogitsBytes / std::max<int64_t>(1, chunks.stride * element);
  chunks.rows = std::clamp(fit / kRowMultiple * kRowMultiple, kRowMultiple, kMostLogitsRows);
  chunks.rows = std::clamp<int64_t>(x.rows(), 1, chunks.rows);
  chunks.logits_offset = round_up(8 * (x.rows() + 1), 256);
  chunks.weight_offset = chunks.logits_offset + round_up(chunks.rows * chunks.stride * element, 256);
  const int64_t own_weight = chunks.classes == weight.rows() ? 0 : chunks.classes * weight.cols() * element;
  chunks.sums_offset = chunks.weight_offset + round_up(own_weight, 256);
  chunks.sums = dweight.present() && dtype_size(dweight.dtype) == 2 && chunks.rows < x.rows();
  return chunks;
}

TensorView activation_gradient(const KernelCall& call) {
  const TensorView &h = call.inputs[3], &y = call.outputs[1];
  if (y.present()) return y;
  return {.data = call.workspace.data, .dtype = h.dtype, .rank = 2, .shape = {h.rows(), h.cols() / 2}};
}

namespace workspace {
namespace {

constexpr uint64_t kF64 = 8;

/// The first operand that is no scalar: the matrix that a reduction kernel reads.
const TensorView& matrix(const KernelCall& call) {
  return *std::find_if(call.inputs.begin(), call.inputs.end(),
                       [](const TensorView& t) { return t.rank >= 1; });
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

uint64_t linear_cross_entropy(const KernelCall& call) {
  const LogitsChunks chunks = logits_chunks(call);
  return static_cast<uint64_t>(chunks.sums_offset + (chunks.sums ? 4 * call.outputs[2].elements() : 0));
}

AttentionShares::AttentionShares(int64_t heads, int64_t group, int64_t seq) {
  const int64_t tiles = (seq + kKeys - 1) / kKeys, query_tiles = (seq + kQueries - 1) / kQueries;
  per_head = tiles * (kTurn + group * (query_tiles - (tiles - 1) * (kKeys / kQueries) / 2));
  share = std::max((heads * per_head + kMost - 1) / kMost, kLeast);
  count = heads * tiles < kFewTiles ? (heads * per_head + share - 1) / share : 0;
}

uint64_t attention_bwd(const KernelCall& call) {
  const TensorView &dy = call.inputs[0], &qkv = call.inputs[1], &lse = call.inputs[3];
  const uint64_t of_rows = kF64 * static_cast<uint64_t>(lse.rows() * attention_row_stride(lse.cols()));
  if (dy.dtype != fb::DType::BF16 || dy.elements() == 0) return of_rows;
  const int64_t dim = dy.elements() / lse.elements(), key_rows = (qkv.elements() - dy.elements()) / (2 * dim);
  if (dim != 64 && dim != 128) return of_rows;  // no device splits tiles of other heads
  const AttentionShares shares(key_rows / lse.cols(), lse.elements() / key_rows, lse.cols());
  return of_rows + 4 * static_cast<uint64_t>(shares.count * 2 * (2 * AttentionShares::kKeys * dim + 1));
}

uint64_t expert_index(const KernelCall& call) {
  const int64_t blocks = (call.inputs[0].elements() + kExpertIndexBlock - 1) / kExpertIndexBlock;
  return 4 * static_cast<uint64_t>(std::max<int64_t>(blocks, 1) * (call.outputs[0].elements() - 1));
}

uint64_t activation_gradient(const KernelCall& call) {
  return call.outputs[1].present() ? 0 : static_cast<uint64_t>(call.inputs[3].bytes() / 2);
}

uint64_t grad_norm(const KernelCall& call) {
  const auto ranges = std::ranges::count_if(call.inputs.begin() + 1, call.inputs.end(), &TensorView::present);
  return 2 * kF64 * static_cast<uint64_t>(kRangePartials * ranges);
}

}  // namespace workspace
}  // namespace moec
