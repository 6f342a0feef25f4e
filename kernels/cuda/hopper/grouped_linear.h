// The grouped products of experts on Hopper's tensor memory accelerator and warpgroup products: the kernels
// of grouped_linear*.cu for bf16 on sm_90a.
#pragma once

#include <initializer_list>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda::hopper {

/// Whether this build has kernels for sm_90a and runs on such a GPU.
bool available();
/// Whether products of `tiles` tiles of 128 x 256 are worth them.
bool suits(int64_t tiles);
/// ceil(rows / 128) * ceil(cols / 256).
int64_t tile_count(int64_t rows, int64_t cols);
/// Whether TMA can read and write all of the matrices: bf16, addresses and rows of whole 16 bytes, not empty.
bool can_map(std::initializer_list<const TensorView*> matrices);

/// Operands as in catalog.def. available() and can_map() hold; offsets are not looked at by the host. Without
/// an activation, rows may use the context's cuBLAS workspace.
cudaError_t grouped_linear(const TensorView& rows, const TensorView& offsets, const TensorView& weight,
                           const TensorView& y, const CudaContext& context);
cudaError_t grouped_linear_swiglu(const TensorView& rows, const TensorView& offsets, const TensorView& weight,
                                  const TensorView& h, const TensorView& y, const CudaContext& context);
cudaError_t grouped_linear_bwd_input(const TensorView& dy, const TensorView& offsets,
                                     const TensorView& weight, const TensorView& drows,
                                     const CudaContext& context);
/// `y` may be absent.
cudaError_t grouped_linear_bwd_input_swiglu(const TensorView& dy, const TensorView& offsets,
                                            const TensorView& weight, const TensorView& h,
                                            const TensorView& dh, const TensorView& y,
                                            const CudaContext& context);
/// dweight may be f32. `squares` may be absent, and is where `accumulate`.
cudaError_t grouped_linear_bwd_weight(const TensorView& dy, const TensorView& rows, const TensorView& offsets,
                                      const TensorView& dweight, bool accumulate, const TensorView& squares,
                                      const CudaContext& context);

}  // namespace moec::cuda::hopper
