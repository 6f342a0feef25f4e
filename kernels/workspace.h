// Scratch bytes of kernels as functions of their operand shapes; named in catalog.def. A kernel on any device
// uses at most this much, and splits its work by the constants here, never by the machine's size, so that
// results and plans are the same everywhere.
#pragma once

#include "kernels/kernel.h"

namespace moec {

/// Rows are reduced to columns in at most this many partial sums, added in order.
constexpr int64_t kColumnPartials = 64;
/// Blocks of a reduction over a contiguous range, added in order.
constexpr int64_t kRangePartials = 1024;
/// Assignments in a block of the counting sort.
constexpr int64_t kExpertIndexBlock = 1024;
/// Values of a digit, where tokens are sorted digit by digit.
constexpr int64_t kTokenDigits = 256;

namespace workspace {

uint64_t none(const KernelCall& call);
/// The stable sort of tokens by value, all i32: a range [rows of the weight, 2], two orders [tokens],
/// histograms [blocks of kExpertIndexBlock tokens, kTokenDigits].
uint64_t embedding_bwd(const KernelCall& call);
/// [kColumnPartials, cols of input 0] of f64.
uint64_t column_partials(const KernelCall& call);
uint64_t column_partials_twice(const KernelCall& call);
/// [rows of the logits, 2] of f64.
uint64_t row_partials(const KernelCall& call);
/// Positions of one head in the workspace of attention_bwd, so that tiles of 64 need no bounds.
constexpr int64_t attention_row_stride(int64_t seq) { return (seq + 63) / 64 * 64; }
/// Per query row and head, in rows of attention_row_stride(): one f64 or two f32, the row sums of dy * y and,
/// where the device wants it there, lse.
uint64_t attention_bwd(const KernelCall& call);
/// Histograms of the stable counting sort: [blocks of kExpertIndexBlock assignments, experts] of i32.
uint64_t expert_index(const KernelCall& call);
/// [kRangePartials] of f64 and a non-finite flag per gradient range.
uint64_t grad_norm(const KernelCall& call);

}  // namespace workspace
}  // namespace moec
