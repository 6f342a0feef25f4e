// Matrix products by our own tiles: of two f32 or two bf16 factors on the tensor cores, of others without
// them. Where the tiles are few, the blocks of a cluster share one and add up their sums in order.
#include <algorithm>
#include <bit>

#include "kernels/cuda/tiled_product.cuh"

namespace moec::cuda {
namespace {

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

template <class T, class TBias, EpilogueKind kEpilogue>
ProductResult<T, TBias, kEpilogue> as_result(const Product& product) {
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

template <class A, class B, class C>
cudaError_t launch_product(const A& a, const B& b, const C& c, const CudaContext& context) {
  using T = std::conditional_t<std::is_same_v<typename A::Element, typename B::Element>, typename A::Element,
                               float>;
  return with_tiles<T>(a.rows, b.rows, a.depth, context, [&]<class Tiles>(Tiles, const TileCut& cut) {
    return launch_cut(CutProduct<Tiles, A, B, C>{a, b, c, cut}, context);
  });
}

template <class TA, class TB, class TC>
cudaError_t launch_form(const Product& product, const CudaContext& context) {
  using enum EpilogueKind;
  constexpr Along kDepth = Along::kDepth, kRows = Along::kRows;
  const auto launch = [&]<Along kA, Along kB, EpilogueKind kEpilogue>() {
    return launch_product(as_factor<TA, kA>(product.a), as_factor<TB, kB>(product.b),
                          as_result<TC, TB, kEpilogue>(product), context);
  };
  const EpilogueKind epilogue = product.epilogue.kind();
  switch (product.form) {
    case ProductForm::kForward:
      if (epilogue == kNone) return launch.template operator()<kDepth, kDepth, kNone>();
      if (epilogue == kForward) return launch.template operator()<kDepth, kDepth, kForward>();
      break;
    case ProductForm::kInput:
      if (epilogue == kNone) return launch.template operator()<kDepth, kRows, kNone>();
      if (epilogue == kBackward) return launch.template operator()<kDepth, kRows, kBackward>();
      break;
    case ProductForm::kWeight:
      if (epilogue == kNone) return launch.template operator()<kRows, kRows, kNone>();
      break;
  }
  return cudaErrorNotSupported;
}

template <class T, class TGrad>
cudaError_t launch_parameters(const Product& weight, const BiasGradient& bias, const CudaContext& context) {
  using F = Factor<T, Along::kRows>;
  using C = ProductResult<TGrad, TGrad, EpilogueKind::kNone>;
  const F a = as_factor<T, Along::kRows>(weight.a), b = as_factor<T, Along::kRows>(weight.b);
  const C c = as_result<TGrad, TGrad, EpilogueKind::kNone>(weight);
  const DepthSums<TGrad> sums = {static_cast<TGrad*>(bias.data), bias.accumulate};
  return with_tiles<T>(a.rows, b.rows, a.depth, context, [&]<class Tiles>(Tiles, const TileCut& cut) {
    return launch_cut(CutProduct<Tiles, F, F, C, true>{a, b, c, cut, sums}, context);
  });
}

}  // namespace

bool tiled_supports(const Product& product) {
  using enum fb::DType;
  const fb::DType a = product.a.dtype, b = product.b.dtype, c = product.c.dtype;
  if (b == F32 || b == F64) return a == b && c == b;
  if (b == BF16) return (a == b || a == F32) && (c == F32 || c == b);
  return b == F16 && ((a == b && c == F32) || (a == F32 && (c == F32 || c == b)));
}

cudaError_t multiply_tiled(const Product& product, const CudaContext& context) {
  using enum fb::DType;
  const auto types = [&](fb::DType a, fb::DType b, fb::DType c) {
    return product.a.dtype == a && product.b.dtype == b && product.c.dtype == c;
  };
  if (product.m() == 0 || product.n() == 0) return cudaSuccess;
  if (types(F32, F32, F32)) return launch_form<float, float, float>(product, context);
  if (types(F64, F64, F64)) return launch_form<double, double, double>(product, context);
  if (types(BF16, BF16, BF16)) return launch_form<bf16, bf16, bf16>(product, context);
  if (types(BF16, BF16, F32)) return launch_form<bf16, bf16, float>(product, context);
  if (types(F32, BF16, F32)) return launch_form<float, bf16, float>(product, context);
  if (types(F32, BF16, BF16)) return launch_form<float, bf16, bf16>(product, context);
  if (types(F16, F16, F32)) return launch_form<f16, f16, float>(product, context);
  if (types(F32, F16, F32)) return launch_form<float, f16, float>(product, context);
  if (types(F32, F16, F16)) return launch_form<float, f16, f16>(product, context);
  return cudaErrorNotSupported;
}

bool can_multiply_parameters(const Product& weight, const CudaContext& context) {
  using enum fb::DType;
  const fb::DType factors = weight.a.dtype, gradient = weight.c.dtype;
  return has_clusters(context) && weight.b.dtype == factors &&
         ((factors == F32 && gradient == F32) || (factors == BF16 && (gradient == BF16 || gradient == F32)));
}

cudaError_t multiply_parameters(const Product& weight, const BiasGradient& bias, const CudaContext& context) {
  if (!can_multiply_parameters(weight, context)) return cudaErrorNotSupported;
  if (weight.m() == 0) return cudaSuccess;
  if (weight.a.dtype == fb::DType::F32) return launch_parameters<float, float>(weight, bias, context);
  return weight.c.dtype == fb::DType::F32 ? launch_parameters<bf16, float>(weight, bias, context)
                                          : launch_parameters<bf16, bf16>(weight, bias, context);
}

}  // namespace moec::cuda
