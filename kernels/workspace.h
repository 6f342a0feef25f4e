// Scratch bytes of kernels as functions of their operand shapes; named in catalog.def. A kernel on any device
// uses at most this much, and splits its work by the constants here, never by the machine's size, so that
// results and plans are the same everywhere.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernel.h"

namespace moec {

/// Rows are reduced to columns in at most this many partial sums of f64, added in order; of f32 in twice as
/// many, one for each of the 132 processors of an H100 or H200.
constexpr int64_t kColumnPartials = 66;

/// Equal pieces of rows; the last one may be shorter.
struct RowPieces {
  int64_t count;
  int64_t rows;  // of a piece
};
/// At most `most` pieces.
constexpr RowPieces row_pieces(int64_t rows, int64_t most) {
  const int64_t piece = std::max<int64_t>(1, (rows + most - 1) / most);
  return {(rows + piece - 1) / piece, piece};
}
/// As many as there may be partial sums of numbers of this size.
constexpr RowPieces column_pieces(int64_t rows, int64_t sum_bytes) {
  return row_pieces(rows, kColumnPartials * static_cast<int64_t>(sizeof(double)) / sum_bytes);
}

/// Blocks of a reduction over a contiguous range, added in order.
constexpr int64_t kRangePartials = 1024;
/// Assignments in a block of the counting sort.
constexpr int64_t kExpertIndexBlock = 1024;
/// Values of a digit, where tokens are sorted digit by digit.
constexpr int64_t kTokenDigits = 256;

/// linear_cross_entropy holds the logits of some of its rows at a time: few enough for the memory, enough to
/// make large matrix products. Its workspace holds, in this order: the losses [rows] of f64 and the number of
/// targets (f64); the logits of a chunk in the type of x; where the types are of 16 bits and the classes no
/// multiple of 8, for which matrix products are several times slower, the weight with rows of zeros at its
/// end; perhaps the weight gradient in f32.
struct LogitsChunks {
  int64_t rows;           // of a chunk; the last one may have fewer
  int64_t classes;        // columns of the logits, those of the zeros included
  int64_t stride;         // elements from a row of logits to the next
  int64_t logits_offset;  // bytes
  int64_t weight_offset;  // bytes
  int64_t sums_offset;    // bytes
  bool sums;  // several chunks add to a 16-bit weight gradient, which is summed in f32 and rounded once
};
LogitsChunks logits_chunks(const KernelCall& call);

/// Where grouped_linear_bwd_input_swiglu may put the gradient of the activation: in the place of y, until y
/// takes it, and in the workspace where y is absent.
TensorView activation_gradient(const KernelCall& call);

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
/// See LogitsChunks.
uint64_t linear_cross_entropy(const KernelCall& call);
/// Positions of one head in the workspace of attention_bwd, so that tiles of 64 need no bounds.
constexpr int64_t attention_row_stride(int64_t seq) { return (seq + 63) / 64 * 64; }
/// How the backward of attention deals out the visits of tiles of keys to those queries of a head that see
/// them. Few tiles would leave much of a large device idle; so all visits, in the order of the tiles, are cut
/// into equal shares, and what several shares have summed of a tile is added.
struct AttentionShares {
  static constexpr int64_t kKeys = 128, kQueries = 64;  // of a visit
  static constexpr int64_t kFewTiles = 256;             // fewer are cut
  static constexpr int64_t kMost = 132;                 // shares
  static constexpr int64_t kTurn = 3;                   // the start and end of a tile, in visits
  static constexpr int64_t kLeast = 8 + kTurn;          // of a share

  int64_t per_head;  // visits and turns of a head of keys
  int64_t share;     // visits and turns
  int64_t count;     // of shares; 0 where tiles are whole

  AttentionShares(int64_t heads, int64_t group, int64_t seq);  // heads of keys of all sequences
};
/// In this order: per query row and head, in rows of attention_row_stride(), one f64 or two f32, the row sums
/// of dy * y and, where the device wants it there, lse; of bf16 heads of 64 or 128, two parts of the
/// gradients of kKeys keys and values per share, f32, and the numbers of parts that are there, [shares, 2] of
/// u32.
uint64_t attention_bwd(const KernelCall& call);
/// Histograms of the stable counting sort: [blocks of kExpertIndexBlock assignments, experts] of i32.
uint64_t expert_index(const KernelCall& call);
/// See the function above; nothing where y is present.
uint64_t activation_gradient(const KernelCall& call);
/// [kRangePartials] of f64 and a non-finite flag per range of gradients or of sums of their squares.
uint64_t grad_norm(const KernelCall& call);

}  // namespace workspace
}  // namespace moec
