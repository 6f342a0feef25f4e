// A norm and the product of its rows in one launch, for rows that a tile reads at once. Every block
// normalises the rows of its tile in registers; those of the first column also write what the norm makes.
#include "kernels/cuda/tiled_launch.cuh"

namespace moec::cuda {
namespace {

/// kEpilogue: none, or an activation where all is whole.
template <class T, class TC, EpilogueKind kEpilogue>
cudaError_t launch_normed(const NormOperands& operands, const Product& product, const CudaContext& context) {
  constexpr Along kDepth = Along::kDepth;
  constexpr EpilogueKind kGeneral = general_kind(kEpilogue);
  ProductMatrix rows = product.a;
  rows.data = operands.x.data;
  const Norm<T> norm = as_norm<T>(operands);
  const auto a = as_factor<T, kDepth>(rows);
  const auto b = as_factor<T, kDepth>(product.b);
  const auto c = as_result<TC, T, kGeneral>(product);
  const auto launch = [&]<class Tiles>(const TileCut& cut) {
    if (are_whole<Tiles>(a, b, c, cut) && product.epilogue.kind() == kEpilogue) {
      using A = NormedFactor<WholeFactor<T, kDepth>>;
      using C = ProductResult<TC, T, kEpilogue, true>;
      const C whole = as_result<TC, T, kEpilogue, true>(product);
      return launch_cut(CutProduct<Tiles, A, WholeFactor<T, kDepth>, C>{{{a}, norm}, {b}, whole, cut},
                        context);
    }
    using A = NormedFactor<Factor<T, kDepth>>;
    using C = ProductResult<TC, T, kGeneral>;
    return launch_cut(CutProduct<Tiles, A, Factor<T, kDepth>, C>{{a, norm}, b, c, cut}, context);
  };
  return with_tiles<T>(a.rows, b.rows, a.depth, context, [&]<class Tiles>(Tiles, const TileCut& cut) {
    if constexpr (std::is_same_v<Tiles, MediumTiles>)
      return launch.template operator()<WideTiles>(cut_tiles<WideTiles>(a.rows, b.rows, a.depth, context));
    else
      return launch.template operator()<SmallTiles>(cut);
  });
}

template <class T>
bool suits_rows(const NormOperands& norm) {
  return whole_vectors(norm.x.cols(), kVectorWidth<T>, {&norm.x, &norm.weight, &norm.bias, &norm.y});
}

}  // namespace

bool can_multiply_normed(const NormOperands& norm, const Product& product, const CudaContext& context) {
  using enum fb::DType;
  const fb::DType type = norm.x.dtype, result = product.c.dtype;
  if (!has_clusters(context) || product.form != ProductForm::kForward || product.epilogue.backward ||
      product.accumulate || product.a.dtype != type || product.b.dtype != type ||
      norm.x.cols() > SmallTiles::kDepth)
    return false;
  if (type == F32) return result == F32 && suits_rows<float>(norm);
  return type == BF16 && (result == BF16 || (result == F32 && product.epilogue.empty())) &&
         suits_rows<bf16>(norm);
}

cudaError_t multiply_normed(const NormOperands& norm, const Product& product, const CudaContext& context) {
  using enum EpilogueKind;
  const bool epilogue = !product.epilogue.empty();
  if (product.a.dtype == fb::DType::F32)
    return epilogue ? launch_normed<float, float, kActivation>(norm, product, context)
                    : launch_normed<float, float, kNone>(norm, product, context);
  if (product.c.dtype == fb::DType::F32) return launch_normed<bf16, float, kNone>(norm, product, context);
  return epilogue ? launch_normed<bf16, bf16, kActivation>(norm, product, context)
                  : launch_normed<bf16, bf16, kNone>(norm, product, context);
}

}  // namespace moec::cuda
