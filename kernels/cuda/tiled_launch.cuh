// How products are cut into tiles, and launched.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/cuda/tiled_product.cuh"

namespace moec::cuda {

/// A device is busy with this many blocks. A constant, so that sums are split the same way on every device.
constexpr int64_t kEnoughBlocks = 128;
/// Blocks of medium tiles from which they beat more small ones.
constexpr int64_t kEnoughMediumBlocks = 96;
/// Depths that a split has at least, and a multiple of which it starts at.
constexpr int64_t kMinSplitDepth = 128, kSplitDepthStep = 32;

template <class Tiles>
TileCut cut_tiles(int64_t rows, int64_t cols, int64_t depth, const CudaContext& context) {
  const int64_t row_tiles = ceil_div(rows, Tiles::kM), col_tiles = ceil_div(cols, Tiles::kN);
  const int64_t most = has_clusters(context) ? kMostClusterBlocks : 1;
  const int64_t wanted =
      std::clamp<int64_t>(std::min(kEnoughBlocks / (row_tiles * col_tiles), depth / kMinSplitDepth), 1, most);
  const auto splits = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(wanted)));
  const int64_t split_depth = ceil_div(ceil_div(depth, splits), kSplitDepthStep) * kSplitDepthStep;
  return {static_cast<int>(row_tiles), static_cast<int>(col_tiles), static_cast<int>(splits),
          static_cast<int>(split_depth)};
}

template <class T, Along kAlong>
Factor<T, kAlong> as_factor(const ProductMatrix& matrix) {
  const auto* data = static_cast<const T*>(matrix.data);
  const bool along_depth = kAlong == Along::kDepth;
  return {data, matrix.stride(), static_cast<int>(along_depth ? matrix.rows : matrix.cols),
          static_cast<int>(along_depth ? matrix.cols : matrix.rows),
          runs_aligned(data, matrix.stride()) && runs_aligned(data, matrix.cols)};
}

template <class T, class TBias, EpilogueKind kEpilogue, bool kWhole = false>
ProductResult<T, TBias, kEpilogue, kWhole> as_result(const Product& product) {
  auto* data = static_cast<T*>(const_cast<void*>(product.c.data));
  const auto* bias = static_cast<const TBias*>(product.bias);
  const int64_t stride = product.c.stride();
  bool aligned = runs_aligned(data, stride) && runs_aligned(bias, 0);
  for (const void* matrix :
       {static_cast<const void*>(product.epilogue.preactivation), product.epilogue.residual})
    aligned = aligned && runs_aligned(static_cast<const T*>(matrix), stride);
  return {data,
          stride,
          static_cast<int>(product.m()),
          static_cast<int>(product.n()),
          bias,
          product.accumulate,
          aligned,
          product.epilogue};
}

template <class CutProduct>
__global__ void __launch_bounds__(CutProduct::kThreads, CutProduct::Engine::kBlocksPerSm)
    multiply_tiles(const CutProduct product) {
  begin_kernel();
  product.run(dynamic_shared());
}

/// Calls launch(tiles, cut) with the kind of tiles that suits a product of factors of type T.
template <class T, class Launch>
cudaError_t with_tiles(int64_t rows, int64_t cols, int64_t depth, const CudaContext& context,
                       Launch&& launch) {
  const TileCut small = cut_tiles<SmallTiles>(rows, cols, depth, context);
  if constexpr (!std::is_same_v<T, double>) {
    // Of f32 factors they take more shared memory than blocks of many devices without clusters have.
    const TileCut medium = cut_tiles<MediumTiles>(rows, cols, depth, context);
    if (has_clusters(context) && medium.splits == 1 && medium.blocks() >= kEnoughMediumBlocks)
      return launch(MediumTiles(), medium);
  }
  if constexpr (std::is_same_v<T, bf16>) {
    if (small.depth > SmallTiles::kDepth) return launch(DeepTiles(), small);
  }
  return launch(SmallTiles(), small);
}

template <class CutProduct>
cudaError_t launch_cut(const CutProduct& product, const CudaContext& context) {
  return launch_clusters(context, multiply_tiles<CutProduct>, product.cut.grid(), product.cut.splits,
                         product.kThreads, product.shared_bytes(), product);
}

/// Whether tiles cut so have no elements outside, and all matrices are aligned.
template <class Tiles, class A, class B, class C>
bool are_whole(const A& a, const B& b, const C& c, const TileCut& cut) {
  return a.aligned && b.aligned && c.aligned && a.rows % Tiles::kM == 0 && b.rows % Tiles::kN == 0 &&
         cut.depth > 0 && cut.depth % Tiles::kDepth == 0 && a.depth % cut.depth == 0;
}

}  // namespace moec::cuda
