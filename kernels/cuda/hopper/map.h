// What the host does for kernels for Hopper. It asks whether there are any, and makes tensor maps: how TMA
// sees a tensor in device memory. These are passed to kernels by value, so they live in a captured graph.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "kernels/kernel.h"

namespace moec::cuda::hopper {

/// Whether this build has code for sm_90a and the current GPU runs it.
bool has_hopper_code();

/// A map of matrices[count, rows, cols] for boxes of box_rows rows of 128 bytes, whose 16-byte chunks are
/// permuted within their row: chunk c of row r is at c ^ r % 8. Elements outside read as 0 and are not
/// written. The address and a row's bytes are multiples of 16.
struct BoxedMatrices {
  const void* data;
  fb::DType dtype;  // BF16 or F32
  int64_t count, rows, cols;
  int box_rows;
};
cudaError_t make_map(const BoxedMatrices& matrices, CUtensorMap* map);

/// The same of rows[batch, positions, heads, dim] of bf16, as a tensor (dim, heads, positions, batch), for
/// boxes of 64 columns. dim is a multiple of 8.
struct BoxedHeads {
  const void* data;
  int64_t batch, positions, heads, dim;
  int box_heads, box_positions;
};
cudaError_t make_map(const BoxedHeads& heads, CUtensorMap* map);

}  // namespace moec::cuda::hopper
