// Matrix products by our own tiles: of two f32 factors on the tensor cores, of others without them. Where the
// tiles are few, the blocks of a cluster share one and add up their sums in order.
#include <algorithm>
#include <bit>

#include "kernels/cuda/bias_gradient.cuh"
#include "kernels/cuda/tiled_product.cuh"

namespace moec::cuda {
namespace {

/// A device is busy with this many blocks. A constant, so that sums are split the same way on every device.
constexpr int64_t kEnoughBlocks = 128;
/// Medium tiles from which they beat four times as many small ones.
constexpr int64_t kEnoughMediumTiles = 96;
/// Depths that a split has at least, and a multiple of which it starts at.
constexpr int64_t kMinSplitDepth = 128, kSplitDepthStep = 32;

/// Medium tiles are not split: to add up their parts takes longer than small ones.
template <class Tiles>
TileCut cut_tiles(int64_t rows, int64_t cols, int64_t depth, const CudaContext& context) {
  const int64_t row_tiles = ceil_div(rows, Tiles::kM), tiles = row_tiles * ceil_div(cols, Tiles::kN);
  const int64_t most = Tiles::kSplits && has_clusters(context) ? kMostClusterBlocks : 1;
  const int64_t wanted =
      std::clamp<int64_t>(std::min(kEnoughBlocks / tiles, depth / kMinSplitDepth), 1, most);
  const auto splits = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(wanted)));
  const int64_t split_depth = ceil_div(ceil_div(depth, splits), kSplitDepthStep) * kSplitDepthStep;
  return {static_cast<int>(row_tiles), static_cast<int>(tiles), static_cast<int>(splits),
          static_cast<int>(split_depth)};
}

bool prefers_medium(int64_t rows, int64_t cols) {
  return ceil_div(rows, MediumTiles::kM) * ceil_div(cols, MediumTiles::kN) >= kEnoughMediumTiles;
}

template <class T, Along kAlong>
Factor<T, kAlong> as_factor(const ProductMatrix& matrix) {
  const auto* data = static_cast<const T*>(matrix.data);
  const bool along_depth = kAlong == Along::kDepth;
  return {data, matrix.cols, static_cast<int>(along_depth ? matrix.rows : matrix.cols),
          static_cast<int>(along_depth ? matrix.cols : matrix.rows), runs_aligned(data, matrix.cols)};
}

template <class T, class TBias>
auto as_result(const Product& product) {
  auto* data = static_cast<T*>(const_cast<void*>(product.c.data));
  const auto* bias = static_cast<const TBias*>(product.bias);
  const auto rows = static_cast<int>(product.m()), cols = static_cast<int>(product.n());
  bool aligned = runs_aligned(data, cols);
  if constexpr (std::is_same_v<T, float> && std::is_same_v<TBias, float>) {
    const Epilogue& epilogue = product.epilogue;
    for (const void* matrix : {static_cast<const void*>(epilogue.preactivation), epilogue.residual})
      aligned = aligned && runs_aligned(static_cast<const T*>(matrix), cols);
    return FusedResult{{data, cols, rows, cols, nullptr, product.accumulate, aligned}, bias, epilogue};
  } else {
    return Result<T, TBias>{data, cols, rows, cols, bias, product.accumulate, aligned};
  }
}

template <class Tiles, class A, class B, class C>
CutProduct<Tiles, A, B, C> cut_product(const A& a, const B& b, const C& c, const CudaContext& context) {
  return {a, b, c, cut_tiles<Tiles>(a.rows, b.rows, a.depth, context)};
}

template <class CutProduct>
__global__ void __launch_bounds__(CutProduct::kThreads, CutProduct::Engine::kBlocksPerSm)
    multiply_tiles(const CutProduct product) {
  begin_kernel();
  product.run(static_cast<int>(blockIdx.x), dynamic_shared());
}

template <class Tiles, class A, class B, class C>
cudaError_t launch_tiles(const A& a, const B& b, const C& c, const CudaContext& context) {
  const auto product = cut_product<Tiles>(a, b, c, context);
  return launch_clusters(context, multiply_tiles<decltype(product)>, dim3(product.cut.blocks()),
                         product.cut.splits, product.kThreads, product.kSharedBytes, product);
}

template <class A, class B, class C>
cudaError_t launch_product(const A& a, const B& b, const C& c, const CudaContext& context) {
  if constexpr (std::is_same_v<typename C::Acc, float>)
    if (prefers_medium(a.rows, b.rows)) return launch_tiles<MediumTiles>(a, b, c, context);
  return launch_tiles<SmallTiles>(a, b, c, context);
}

template <class TA, class TB, class TC>
cudaError_t launch_form(const Product& product, const CudaContext& context) {
  const auto c = as_result<TC, TB>(product);
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

/// The sums of the columns of in[rows, cols], kSumCols of them per block.
struct ColumnSums {
  const float* in;
  int64_t rows;
  int64_t cols;
  float* out;
  bool accumulate;

  int blocks() const { return static_cast<int>(ceil_div(cols, kSumCols)); }

  template <int kBlockThreads>
  __device__ void run(int block) const {
    const int64_t first = int64_t{block} * kSumCols, col = first + threadIdx.x;
    const float sum = column_sum<kBlockThreads / kSumCols>(in, 0, rows, cols, first);
    if (threadIdx.x < kSumCols && col < cols) out[col] = accumulate ? out[col] + sum : sum;
  }
};

/// The first `weight_blocks` blocks, whole clusters, work on the weight's gradient, the others on the bias's.
template <class Weight>
__global__ void __launch_bounds__(Weight::kThreads, Weight::Engine::kBlocksPerSm)
    multiply_parameter_tiles(const Weight weight, const ColumnSums bias, int weight_blocks) {
  begin_kernel();
  const int block = static_cast<int>(blockIdx.x);
  if (block < weight_blocks) {
    weight.run(block, dynamic_shared());
  } else {
    bias.template run<Weight::kThreads>(block - weight_blocks);
  }
}

template <class Tiles>
cudaError_t launch_parameters(const Product& product, const ColumnSums& bias, const CudaContext& context) {
  const auto weight =
      cut_product<Tiles>(as_factor<float, Along::kRows>(product.a), as_factor<float, Along::kRows>(product.b),
                         as_result<float, float>(product), context);
  const int cluster = weight.cut.splits, weight_blocks = weight.cut.blocks();
  const int bias_blocks = static_cast<int>(ceil_div(bias.blocks(), cluster)) * cluster;
  return launch_clusters(context, multiply_parameter_tiles<decltype(weight)>,
                         dim3(weight_blocks + bias_blocks), cluster, weight.kThreads, weight.kSharedBytes,
                         weight, bias, weight_blocks);
}

}  // namespace

bool tiled_applies_epilogue(const Product& product) {
  return product.a.dtype == fb::DType::F32 && product.b.dtype == fb::DType::F32;
}

bool tiled_supports(const Product& product) {
  using enum fb::DType;
  const fb::DType a = product.a.dtype, b = product.b.dtype, c = product.c.dtype;
  if (b == F32 || b == F64) return a == b && c == b;
  const bool half = b == BF16 || b == F16;
  return half && ((a == b && c == F32) || (a == F32 && (c == F32 || c == b)));
}

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

cudaError_t multiply_parameters(const Product& weight, float* dbias, bool accumulate_bias,
                                const CudaContext& context) {
  const ProductMatrix& dy = weight.a;
  const ColumnSums bias = {static_cast<const float*>(dy.data), dy.rows, dy.cols, dbias, accumulate_bias};
  return prefers_medium(weight.m(), weight.n()) ? launch_parameters<MediumTiles>(weight, bias, context)
                                                : launch_parameters<SmallTiles>(weight, bias, context);
}

}  // namespace moec::cuda
