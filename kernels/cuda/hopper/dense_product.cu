#include <algorithm>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/dense_product.h"
#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/grouped.cuh"
#include "kernels/cuda/hopper/map.h"
#include "kernels/cuda/hopper/rotated_rows.cuh"
#include "kernels/cuda/vector.cuh"

namespace moec::cuda::hopper {
namespace {

/// Steps of depth that a split has at least.
constexpr int64_t kLeastSteps = 32;

/// Share of what all clusters could do in the same time from which on cuBLAS is slower.
constexpr double kLeastUse = 0.82;
/// The same of rounds of tiles, of products whose factors both lie along depth.
constexpr int64_t kLeastRounds = 2;

int64_t cluster_tiles(const Product& product) {
  return ceil_div(product.m(), int64_t{Tile::kBlocks * Tile::kM}) * ceil_div(product.n(), int64_t{Tile::kN});
}

/// How the depth of a weight's gradient is split: sums [count, m, n] of `share` depths each.
struct Split {
  int64_t count, share;

  explicit Split(const Product& product) {
    const int64_t tiles = cluster_tiles(product);
    const int64_t steps = ceil_div(product.k(), int64_t{Tile::kK});
    const int64_t most = std::max<int64_t>(1, std::min(kClusters / tiles, steps / kLeastSteps));
    share = ceil_div(steps, most) * Tile::kK;
    count = ceil_div(steps * Tile::kK, share);
  }
  size_t sums_bytes(const Product& product) const {
    return count == 1 ? 0 : static_cast<size_t>(count * product.m() * product.n()) * sizeof(float);
  }
};

cudaError_t map_matrix(const ProductMatrix& matrix, int box_rows, CUtensorMap* map) {
  return make_map({matrix.data, matrix.dtype, 1, matrix.rows, matrix.cols, box_rows}, map);
}

template <Along kAlongA, Along kAlongB, Grouped kGrouped, class Epilogue>
cudaError_t launch(const Product& product, const Epilogue& epilogue, const GroupedProblem& problem,
                   const CudaContext& context) {
  using Block = GroupedBlock<kAlongA, kAlongB, kGrouped, Epilogue>;
  CUtensorMap a, b;
  cudaError_t error = map_matrix(product.a, Block::StepA::kBoxRows, &a);
  if (error == cudaSuccess) error = map_matrix(product.b, Block::StepB::kBoxRows, &b);
  if (error != cudaSuccess) return error;
  return launch_clusters(context, multiply_groups<kAlongA, kAlongB, kGrouped, Epilogue>,
                         dim3(static_cast<unsigned>(context.sm_count / Tile::kBlocks * Tile::kBlocks)),
                         Tile::kBlocks, Tile::kThreads, SharedMemory<Epilogue>::kBytes, a, b, epilogue,
                         problem);
}

template <Along kAlongB, class Epilogue>
cudaError_t multiply_rows(const Product& product, Epilogue epilogue, const CudaContext& context) {
  const ProductMatrix& c = product.c;
  const int rows = static_cast<int>(c.rows), cols = static_cast<int>(c.cols);
  epilogue.c.data = static_cast<bf16*>(const_cast<void*>(c.data));
  epilogue.c.cols = cols;
  const cudaError_t error = map_matrix(c, kPanelRows, &epilogue.c.map);
  if (error != cudaSuccess) return error;
  return launch<Along::kDepth, kAlongB, Grouped::kRows>(product, epilogue,
                                                        {.offsets = nullptr,
                                                         .experts = 1,
                                                         .rows = 0,
                                                         .cols = cols,
                                                         .depth = static_cast<int>(product.k()),
                                                         .share = rows,
                                                         .last = rows},
                                                        context);
}

template <int kHeadDim, bool kHalf>
cudaError_t multiply_rotated(const Product& product, const fb::RopeT& rope, int64_t seq_len,
                             const CudaContext& context) {
  StoreRotated<kHeadDim, kHalf> epilogue = {};
  epilogue.rotation = Rotation(rope, 1);
  epilogue.seq_len = static_cast<uint32_t>(seq_len);
  epilogue.reciprocal = UINT32_MAX / epilogue.seq_len;
  epilogue.rotated_cols = static_cast<int>((rope.heads + rope.kv_heads) * rope.head_dim);
  return multiply_rows<Along::kDepth>(product, epilogue, context);
}

/// c, or c plus, the sums [splits, elements] of the parts of the depth, added in order; a thread per run
/// of 4.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_splits(const float* sums, int splits, int64_t runs, T* c, bool accumulate) {
  begin_kernel();
  constexpr int kRun = 4;
  const int64_t i = global_thread();
  if (i >= runs) return;
  Vector<float, kRun> sum = load<kRun>(sums, i);
  for (int split = 1; split < splits; ++split) {
    const auto more = load<kRun>(sums, split * runs + i);
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum.value[j] += more.value[j];
  }
  Vector<T, kRun> out;
  if (accumulate) out = load<kRun>(c, i);
#pragma unroll
  for (int j = 0; j < kRun; ++j)
    out.value[j] = to_storage<T>(accumulate ? widen(out.value[j]) + sum.value[j] : sum.value[j]);
  store(c, i, out);
}

template <class T>
cudaError_t multiply_depths(const Product& product, const Split& split, const TensorView& c, bool accumulate,
                            const CudaContext& context) {
  StoreGradient<T> epilogue = {};
  epilogue.accumulate = accumulate;
  const cudaError_t error =
      make_map({c.data, c.dtype, c.dim(0), c.dim(1), c.dim(2), kPanelRows}, &epilogue.map);
  if (error != cudaSuccess) return error;
  return launch<Along::kRows, Along::kRows, Grouped::kDepth>(product, epilogue,
                                                             {.offsets = nullptr,
                                                              .experts = static_cast<int>(split.count),
                                                              .rows = static_cast<int>(c.dim(1)),
                                                              .cols = static_cast<int>(c.dim(2)),
                                                              .depth = 0,
                                                              .share = static_cast<int>(split.share),
                                                              .last = static_cast<int>(product.k())},
                                                             context);
}

cudaError_t multiply_weight(const Product& product, const CudaContext& context) {
  const Split split(product);
  void* data = const_cast<void*>(product.c.data);
  TensorView sums = {};
  sums.rank = 3;
  sums.shape = {split.count, product.m(), product.n()};
  sums.dtype = split.count == 1 ? product.c.dtype : fb::DType::F32;
  sums.data = split.count == 1 ? data : context.cublas_workspace;
  const bool accumulate = product.accumulate && split.count == 1;
  const cudaError_t error = sums.dtype == fb::DType::F32
                                ? multiply_depths<float>(product, split, sums, accumulate, context)
                                : multiply_depths<bf16>(product, split, sums, accumulate, context);
  if (error != cudaSuccess || split.count == 1) return error;
  const int64_t runs = product.m() * product.n() / 4;
  const auto add = [&]<class T>(T* c) {
    return cuda::launch(context, add_splits<T>, ceil_div(runs, int64_t{kThreads}), kThreads,
                        sums.as<const float>(), static_cast<int>(split.count), runs, c, product.accumulate);
  };
  return product.c.dtype == fb::DType::F32 ? add(static_cast<float*>(data)) : add(static_cast<bf16*>(data));
}

/// Whether TMA can read or write the matrix.
bool can_map(const ProductMatrix& matrix) {
  return matrix.rows > 0 && matrix.cols > 0 && matrix.stride() == matrix.cols &&
         matrix.cols * dtype_size(matrix.dtype) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0;
}

}  // namespace

bool computes_dense(const Product& product, const CudaContext& context) {
  const bool weight = product.form == ProductForm::kWeight;
  const fb::DType result = product.c.dtype;
  return product.a.dtype == fb::DType::BF16 && product.b.dtype == fb::DType::BF16 &&
         (result == fb::DType::BF16 || (weight && result == fb::DType::F32)) && product.bias == nullptr &&
         product.epilogue.empty() && (weight || !product.accumulate) && can_map(product.a) &&
         can_map(product.b) && can_map(product.c) && has_hopper_code() &&
         (!weight || Split(product).sums_bytes(product) <= context.cublas_workspace_bytes);
}

bool suits_dense(const Product& product) {
  const int64_t parts = product.form == ProductForm::kWeight ? Split(product).count : 1;
  const int64_t rounds = ceil_div(cluster_tiles(product) * parts, kClusters);
  if (product.form == ProductForm::kForward && rounds < kLeastRounds) return false;
  const int64_t most = rounds * kClusters * Tile::kBlocks * Tile::kM * Tile::kN;
  return static_cast<double>(product.m() * product.n() * parts) >= kLeastUse * static_cast<double>(most);
}

cudaError_t multiply_dense(const Product& product, const CudaContext& context) {
  switch (product.form) {
    case ProductForm::kForward:
      return multiply_rows<Along::kDepth>(product, StoreRows(), context);
    case ProductForm::kInput:
      return multiply_rows<Along::kRows>(product, StoreRows(), context);
    case ProductForm::kWeight:
      return multiply_weight(product, context);
  }
  return cudaErrorNotSupported;
}

bool computes_rotated(const Product& product, const fb::RopeT& rope, const CudaContext& context) {
  return Rotation::supports(rope) && computes_dense(product, context);
}

cudaError_t multiply_rotated(const Product& product, const fb::RopeT& rope, int64_t seq_len,
                             const CudaContext& context) {
  const auto multiply = [&]<int kHeadDim>() {
    return rope.style == fb::RopeStyle::Half
               ? multiply_rotated<kHeadDim, true>(product, rope, seq_len, context)
               : multiply_rotated<kHeadDim, false>(product, rope, seq_len, context);
  };
  return rope.head_dim == 64 ? multiply.template operator()<64>() : multiply.template operator()<128>();
}

}  // namespace moec::cuda::hopper
