// Dense products on Hopper's tensor memory accelerator and warpgroup products: those of grouped.cuh with one
// group.
#pragma once

#include "kernels/cuda/product.h"

namespace moec::cuda::hopper {

/// Whether multiply_dense() computes the product: of bf16 factors to a bf16 result, or to an f32 one where it
/// is a weight's gradient; without bias and epilogue.
bool computes_dense(const Product& product, const CudaContext& context);

/// Whether the tiles of a product that computes_dense() keep a device busy.
bool suits_dense(const Product& product);

/// A product that computes_dense(). A weight's gradient may use the context's cuBLAS workspace.
cudaError_t multiply_dense(const Product& product, const CudaContext& context);

/// The same for a product kForward that makes packed queries, keys and values of sequences of `seq_len`
/// positions, whose queries and keys are then rotated.
bool computes_rotated(const Product& product, const fb::RopeT& rope, const CudaContext& context);
cudaError_t multiply_rotated(const Product& product, const fb::RopeT& rope, int64_t seq_len,
                             const CudaContext& context);

}  // namespace moec::cuda::hopper
