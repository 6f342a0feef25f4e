// Matrix products by our own tiles: of two f32 factors on the tensor cores, of others without them. Products
// with few tiles are split along their depth into partial products in scratch memory, which are then added in
// order.
#include <algorithm>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/tf32_tile.cuh"

namespace moec::cuda {
namespace {

/// A device is busy with this many blocks. A constant, so that sums are split the same way on every device.
constexpr int64_t kEnoughBlocks = 128;
/// Medium tiles from which they beat four times as many small ones.
constexpr int64_t kEnoughMediumTiles = 96;
/// Depths that a split has at least, and a multiple of which it starts at.
constexpr int64_t kMinSplitDepth = 128;

/// One block per tile (x, rows first) and split (z); split z writes the z-th matrix of c.
template <class Tile, class A, class B, class C>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    multiply_tiles(A a, B b, C c, int split_depth) {
  begin_kernel();
  const int begin = static_cast<int>(blockIdx.z) * split_depth;
  const int depth = min(split_depth, a.depth - begin);
  a.data = a.at(0, begin);
  b.data = b.at(0, begin);
  a.depth = b.depth = depth;
  c.data += blockIdx.z * c.stride * c.rows;
  const int row_tiles = (c.rows + Tile::Shape::kM - 1) / Tile::Shape::kM, tile = static_cast<int>(blockIdx.x);
  Tile::run(a, b, c, tile % row_tiles * Tile::Shape::kM, tile / row_tiles * Tile::Shape::kN,
            dynamic_shared());
}

/// Adds the `splits` matrices of `partials` to c, four columns per thread.
template <class Partial, class C>
__global__ void add_partials(Partial partials, C c, int splits) {
  begin_kernel();
  const int packs = (c.cols + 3) / 4;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int row = static_cast<int>(index / packs), col = static_cast<int>(index % packs) * 4;
  if (row >= c.rows) return;
  auto sum = partials.load4(row, col);
  for (int split = 1; split < splits; ++split) {
    partials.data += partials.stride * partials.rows;
    const auto next = partials.load4(row, col);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum.value[j] += next.value[j];
  }
  c.store(row, col, sum);
}

template <class Tile, class A, class B, class C>
cudaError_t launch_tiles(const A& a, const B& b, const C& c, int splits, int split_depth,
                         const CudaContext& context) {
  using Shape = typename Tile::Shape;
  const dim3 grid(static_cast<unsigned>(ceil_div(c.rows, Shape::kM) * ceil_div(c.cols, Shape::kN)), 1,
                  static_cast<unsigned>(splits));
  return launch_grid(context, multiply_tiles<Tile, A, B, C>, grid, Tile::kThreads, Tile::kSharedBytes, a, b,
                     c, split_depth);
}

template <class A, class B, class C>
cudaError_t launch_product(const A& a, const B& b, const C& c, const CudaContext& context) {
  using Acc = typename C::Acc;
  using Small = SmallTile<A, B, C>;
  using Medium = MediumTile<A, B, C>;
  const auto tiles = [&](int64_t size) { return ceil_div(c.rows, size) * ceil_div(c.cols, size); };
  if constexpr (std::is_same_v<Acc, float>) {
    if (tiles(Medium::Shape::kM) >= kEnoughMediumTiles)
      return launch_tiles<Medium>(a, b, c, 1, a.depth, context);
  }

  const int64_t elements = int64_t{c.rows} * c.cols;
  const auto room = static_cast<int64_t>(context.cublas_workspace_bytes / sizeof(Acc)) / elements;
  const int64_t wanted =
      std::min({ceil_div(kEnoughBlocks, tiles(Small::Shape::kM)), a.depth / kMinSplitDepth, room});
  if (wanted <= 1) return launch_tiles<Small>(a, b, c, 1, a.depth, context);

  const int64_t split_depth = ceil_div(ceil_div(a.depth, wanted), kMinSplitDepth) * kMinSplitDepth;
  const auto splits = static_cast<int>(ceil_div(a.depth, split_depth));
  auto* scratch = static_cast<Acc*>(context.cublas_workspace);
  const bool aligned = runs_aligned(scratch, c.cols);
  const Result<Acc> partial{scratch, c.cols, c.rows, c.cols, nullptr, false, aligned};
  const cudaError_t error = launch_tiles<SmallTile<A, B, Result<Acc>>>(
      a, b, partial, splits, static_cast<int>(split_depth), context);
  if (error != cudaSuccess) return error;
  const Factor<Acc, Along::kDepth> partials{scratch, c.cols, c.rows, c.cols, aligned};
  return launch(context, add_partials<Factor<Acc, Along::kDepth>, C>,
                ceil_div(c.rows * ceil_div(c.cols, 4), kThreads), kThreads, partials, c, splits);
}

template <class T, Along kAlong>
Factor<T, kAlong> as_factor(const ProductMatrix& matrix) {
  const auto* data = static_cast<const T*>(matrix.data);
  const bool along_depth = kAlong == Along::kDepth;
  return {data, matrix.cols, static_cast<int>(along_depth ? matrix.rows : matrix.cols),
          static_cast<int>(along_depth ? matrix.cols : matrix.rows), runs_aligned(data, matrix.cols)};
}

template <class TA, class TB, class TC>
cudaError_t launch_form(const Product& product, const CudaContext& context) {
  auto* data = static_cast<TC*>(const_cast<void*>(product.c.data));
  const Result<TC, TB> c{data,
                         product.n(),
                         static_cast<int>(product.m()),
                         static_cast<int>(product.n()),
                         static_cast<const TB*>(product.bias),
                         product.accumulate,
                         runs_aligned(data, product.n())};
  constexpr Along kDepth = Along::kDepth, kRows = Along::kRows;
  switch (product.form) {
    case ProductForm::kForward:
      return launch_product(as_factor<TA, kDepth>(product.a), as_factor<TB, kDepth>(product.b), c, context);
    case ProductForm::kInput:
      return launch_product(as_factor<TA, kDepth>(product.a), as_factor<TB, kRows>(product.b), c, context);
    case ProductForm::kWeight:
      return launch_product(as_factor<TA, kRows>(product.a), as_factor<TB, kRows>(product.b), c, context);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t multiply_tiled(const Product& product, const CudaContext& context) {
  using enum fb::DType;
  const auto types = [&](fb::DType a, fb::DType b, fb::DType c) {
    return product.a.dtype == a && product.b.dtype == b && product.c.dtype == c;
  };
  if (product.m() == 0 || product.n() == 0) return cudaSuccess;
  if (types(F32, F32, F32)) return launch_form<float, float, float>(product, context);
  if (types(F64, F64, F64)) return launch_form<double, double, double>(product, context);
  if (types(BF16, BF16, F32)) return launch_form<bf16, bf16, float>(product, context);
  if (types(F32, BF16, F32)) return launch_form<float, bf16, float>(product, context);
  if (types(F32, BF16, BF16)) return launch_form<float, bf16, bf16>(product, context);
  if (types(F16, F16, F32)) return launch_form<f16, f16, float>(product, context);
  if (types(F32, F16, F32)) return launch_form<float, f16, float>(product, context);
  if (types(F32, F16, F16)) return launch_form<float, f16, f16>(product, context);
  return cudaErrorNotSupported;
}

}  // namespace moec::cuda
