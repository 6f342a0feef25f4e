// Matrix products by our own tiles: of two f32 or two bf16 factors on the tensor cores, of others without
// them. Where the tiles are few, the blocks of a cluster share one and add up their sums in order.
#include "kernels/cuda/batched.h"
#include "kernels/cuda/tiled_launch.cuh"

namespace moec::cuda {
namespace {

/// The product of factors along kA and kB to a result of TC with an epilogue. There is code for each kind of
/// epilogue where all is whole: what is skipped takes its time, too.
template <class TA, Along kA, class TB, Along kB, class TC, EpilogueKind kEpilogue>
cudaError_t launch_product(const Product& product, const CudaContext& context) {
  constexpr bool kAlike = std::is_same_v<TA, TB>;
  constexpr bool kDense = kAlike && (std::is_same_v<TA, float> || std::is_same_v<TA, bf16>);
  constexpr EpilogueKind kGeneral = general_kind(kEpilogue);
  using T = std::conditional_t<kAlike, TA, float>;
  const auto a = as_factor<TA, kA>(product.a);
  const auto b = as_factor<TB, kB>(product.b);
  const auto c = as_result<TC, TB, kGeneral>(product);
  return with_tiles<T>(a.rows, b.rows, a.depth, context, [&]<class Tiles>(Tiles, const TileCut& cut) {
    if constexpr (kDense && kEpilogue != EpilogueKind::kForward) {
      using A = WholeFactor<TA, kA>;
      using B = WholeFactor<TB, kB>;
      using C = ProductResult<TC, TB, kEpilogue, true>;
      const C whole = as_result<TC, TB, kEpilogue, true>(product);
      if (are_whole<Tiles>(a, b, c, cut))
        return launch_cut(CutProduct<Tiles, A, B, C>{{a}, {b}, whole, cut}, context);
    }
    using C = ProductResult<TC, TB, kGeneral>;
    return launch_cut(CutProduct<Tiles, Factor<TA, kA>, Factor<TB, kB>, C>{a, b, c, cut}, context);
  });
}

template <class TA, class TB, class TC>
cudaError_t launch_form(const Product& product, const CudaContext& context) {
  using enum EpilogueKind;
  constexpr Along kDepth = Along::kDepth, kRows = Along::kRows;
  const auto launch = [&]<Along kA, Along kB, EpilogueKind kEpilogue>() {
    return launch_product<TA, kA, TB, kB, TC, kEpilogue>(product, context);
  };
  const EpilogueKind epilogue = product.epilogue.kind();
  switch (product.form) {
    case ProductForm::kForward:
      if (epilogue == kNone) return launch.template operator()<kDepth, kDepth, kNone>();
      if (epilogue == kActivation) return launch.template operator()<kDepth, kDepth, kActivation>();
      if (epilogue == kResidual) return launch.template operator()<kDepth, kDepth, kResidual>();
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

/// Products of one kind in one launch, the tiles of each behind those of the one before it.
template <class CutProduct>
struct ProductBatch {
  CutProduct products[kMostBatchedCalls];
  int end[kMostBatchedCalls];  // of their tiles
};

/// A block per tile.
template <class CutProduct>
__global__ void __launch_bounds__(CutProduct::kThreads, CutProduct::Engine::kBlocksPerSm)
    multiply_batch(const __grid_constant__ ProductBatch<CutProduct> batch) {
  begin_kernel();
  const auto tile = static_cast<int>(blockIdx.x);
  int i = 0;
  while (tile >= batch.end[i]) ++i;
  const CutProduct& product = batch.products[i];
  const int place = tile - (i == 0 ? 0 : batch.end[i - 1]);
  product.run(dynamic_shared(), 0, place % product.cut.row_tiles, place / product.cut.row_tiles);
}

/// The gradient of a weight in tiles that are not split, and of the bias that goes with it.
template <class Tiles, class T, class TGrad>
auto cut_parameters(const Product& weight, const BiasGradient& bias) {
  using F = Factor<T, Along::kRows>;
  using C = ProductResult<TGrad, TGrad, EpilogueKind::kNone>;
  const F a = as_factor<T, Along::kRows>(weight.a), b = as_factor<T, Along::kRows>(weight.b);
  const TileCut cut = {static_cast<int>(ceil_div(a.rows, Tiles::kM)),
                       static_cast<int>(ceil_div(b.rows, Tiles::kN)), 1, a.depth};
  return CutProduct<Tiles, F, F, C, true>{a,
                                          b,
                                          as_result<TGrad, TGrad, EpilogueKind::kNone>(weight),
                                          cut,
                                          {static_cast<TGrad*>(bias.data), bias.accumulate}};
}

template <class Tiles, class T, class TGrad>
cudaError_t launch_batch(std::span<const Product> weights, std::span<const BiasGradient> biases,
                         const CudaContext& context) {
  using Cut = decltype(cut_parameters<Tiles, T, TGrad>(weights[0], biases[0]));
  ProductBatch<Cut> batch = {};
  int tiles = 0;
  for (size_t i = 0; i < kMostBatchedCalls; ++i) {
    if (i < weights.size()) {
      batch.products[i] = cut_parameters<Tiles, T, TGrad>(weights[i], biases[i]);
      tiles += batch.products[i].cut.row_tiles * batch.products[i].cut.col_tiles;
    }
    batch.end[i] = tiles;
  }
  return launch_grid(context, multiply_batch<Cut>, dim3(static_cast<unsigned>(tiles)), Cut::kThreads,
                     batch.products[0].shared_bytes(), batch);
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

bool can_multiply_beside(const Product& weight, const CudaContext& context) {
  constexpr int64_t kLeastTiles = 12, kMostDepth = 2048;
  const int64_t tiles = ceil_div(weight.m(), SmallTiles::kM) * ceil_div(weight.n(), SmallTiles::kN);
  return can_multiply_parameters(weight, context) && tiles >= kLeastTiles && weight.k() <= kMostDepth;
}

cudaError_t multiply_beside(std::span<const Product> weights, std::span<const BiasGradient> biases,
                            const CudaContext& context) {
  if (weights[0].a.dtype == fb::DType::F32)
    return launch_batch<SmallTiles, float, float>(weights, biases, context);
  return weights[0].c.dtype == fb::DType::F32
             ? launch_batch<LongTiles, bf16, float>(weights, biases, context)
             : launch_batch<LongTiles, bf16, bf16>(weights, biases, context);
}

}  // namespace moec::cuda
