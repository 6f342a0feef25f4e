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
/// Blocks of medium tiles from which they beat four times as many of small ones.
constexpr int64_t kEnoughMediumBlocks = 96;
/// Depths that a split has at least, and a multiple of which it starts at.
constexpr int64_t kMinSplitDepth = 64, kSplitDepthStep = 32;

/// Splits are powers of two, so that clusters of several products fit together.
TileCut cut_tiles(int64_t rows, int64_t cols, int64_t depth, int64_t tile, const CudaContext& context) {
  const int64_t row_tiles = ceil_div(rows, tile), tiles = row_tiles * ceil_div(cols, tile);
  const int64_t most = has_clusters(context) ? kMostClusterBlocks : 1;
  const int64_t wanted = std::clamp<int64_t>(
      std::min(kEnoughBlocks / std::max<int64_t>(tiles, 1), depth / kMinSplitDepth), 1, most);
  const auto splits = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(wanted)));
  const int64_t split_depth = ceil_div(ceil_div(depth, splits), kSplitDepthStep) * kSplitDepthStep;
  return {static_cast<int>(row_tiles), static_cast<int>(tiles), static_cast<int>(splits),
          static_cast<int>(split_depth)};
}

bool prefers_medium(int64_t rows, int64_t cols, int64_t depth, const CudaContext& context) {
  return cut_tiles(rows, cols, depth, MediumTiles::kM, context).blocks() >= kEnoughMediumBlocks;
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
  return {a, b, c, cut_tiles(a.rows, b.rows, a.depth, Tiles::kM, context)};
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
    if (prefers_medium(a.rows, b.rows, a.depth, context)) return launch_tiles<MediumTiles>(a, b, c, context);
  return launch_tiles<SmallTiles>(a, b, c, context);
}

template <ProductForm kForm, class TA, class TB, class TC>
cudaError_t launch_form(const Product& product, const CudaContext& context) {
  constexpr Along kAlongA = kForm == ProductForm::kWeight ? Along::kRows : Along::kDepth;
  constexpr Along kAlongB = kForm == ProductForm::kForward ? Along::kDepth : Along::kRows;
  return launch_product(as_factor<TA, kAlongA>(product.a), as_factor<TB, kAlongB>(product.b),
                        as_result<TC, TB>(product), context);
}

/// Products in which everything is of type T.
template <class T>
cudaError_t launch_uniform(const Product& product, const CudaContext& context) {
  switch (product.form) {
    case ProductForm::kForward:
      return launch_form<ProductForm::kForward, T, T, T>(product, context);
    case ProductForm::kInput:
      return launch_form<ProductForm::kInput, T, T, T>(product, context);
    case ProductForm::kWeight:
      return launch_form<ProductForm::kWeight, T, T, T>(product, context);
  }
  return cudaErrorInvalidValue;
}

/// Products of 16-bit linear layers that write f32: with a bias, and those of their gradients dy.
template <class T>
cudaError_t launch_widening(const Product& product, const CudaContext& context) {
  const bool a_is_f32 = product.a.dtype == fb::DType::F32, c_is_f32 = product.c.dtype == fb::DType::F32;
  switch (product.form) {
    case ProductForm::kForward:
      if (a_is_f32 || !c_is_f32) break;
      return launch_form<ProductForm::kForward, T, T, float>(product, context);
    case ProductForm::kInput:
      if (!a_is_f32 || c_is_f32) break;
      return launch_form<ProductForm::kInput, float, T, T>(product, context);
    case ProductForm::kWeight:
      if (!a_is_f32) break;
      return c_is_f32 ? launch_form<ProductForm::kWeight, float, T, float>(product, context)
                      : launch_form<ProductForm::kWeight, float, T, T>(product, context);
  }
  return cudaErrorNotSupported;
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

cudaError_t multiply_tiled(const Product& product, const CudaContext& context) {
  if (product.m() == 0 || product.n() == 0) return cudaSuccess;
  return with_type(product.b.dtype, [&]<class T>() {
    if constexpr (sizeof(T) == 2)
      return launch_widening<T>(product, context);
    else
      return launch_uniform<T>(product, context);
  });
}

cudaError_t multiply_parameters(const Product& weight, float* dbias, bool accumulate_bias,
                                const CudaContext& context) {
  const ProductMatrix& dy = weight.a;
  const ColumnSums bias = {static_cast<const float*>(dy.data), dy.rows, dy.cols, dbias, accumulate_bias};
  return prefers_medium(weight.m(), weight.n(), weight.k(), context)
             ? launch_parameters<MediumTiles>(weight, bias, context)
             : launch_parameters<SmallTiles>(weight, bias, context);
}

}  // namespace moec::cuda
