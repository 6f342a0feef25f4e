#include <algorithm>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/grouped.cuh"
#include "kernels/cuda/hopper/grouped_linear.h"
#include "kernels/cuda/hopper/map.h"
#include "kernels/cuda/hopper/swiglu_bwd.cuh"
#include "kernels/cuda/hopper/tail.cuh"

namespace moec::cuda::hopper {
namespace {

/// Products of fewer tiles leave too much of a device idle. A constant, so that results are the same on every
/// device.
constexpr int64_t kEnoughTiles = 48;

cudaError_t map_rows(const TensorView& matrix, int box_rows, CUtensorMap* map) {
  return make_map({matrix.data, matrix.dtype, 1, matrix.rows(), matrix.cols(), box_rows}, map);
}

cudaError_t map_experts(const TensorView& matrices, int box_rows, CUtensorMap* map) {
  return make_map(
      {matrices.data, matrices.dtype, matrices.dim(0), matrices.dim(1), matrices.dim(2), box_rows}, map);
}

cudaError_t panels_to(const TensorView& to, int panel_rows, PanelsOut* out) {
  out->data = to.as<bf16>();
  out->cols = static_cast<int>(to.cols());
  return map_rows(to, panel_rows, &out->map);
}

template <Along kAlongA, Along kAlongB, Grouped kGrouped, class Epilogue>
cudaError_t launch_groups(const CUtensorMap& a, const CUtensorMap& b, const Epilogue& epilogue,
                          const GroupedProblem& problem, const CudaContext& context) {
  return launch_clusters(context, multiply_groups<kAlongA, kAlongB, kGrouped, Epilogue>,
                         dim3(static_cast<unsigned>(context.sm_count / Tile::kBlocks * Tile::kBlocks)),
                         Tile::kBlocks, Tile::kThreads, SharedMemory<Epilogue>::kBytes, a, b, epilogue,
                         problem);
}

/// rows[R,K] times the weight[E,N,K] of their experts, or along kRows weight[E,K,N].
template <Along kAlongB, class Epilogue>
cudaError_t multiply_rows(const TensorView& rows, const TensorView& offsets, const TensorView& weight,
                          const Epilogue& epilogue, const CudaContext& context) {
  using Block = GroupedBlock<Along::kDepth, kAlongB, Grouped::kRows, Epilogue>;
  CUtensorMap a, b;
  cudaError_t error = map_rows(rows, Block::StepA::kBoxRows, &a);
  if (error == cudaSuccess) error = map_experts(weight, Block::StepB::kBoxRows, &b);
  if (error != cudaSuccess) return error;
  const int64_t cols = weight.dim(kAlongB == Along::kRows ? 2 : 1);
  const GroupedProblem problem = {.offsets = offsets.as<const int32_t>(),
                                  .experts = static_cast<int>(weight.dim(0)),
                                  .rows = 0,
                                  .cols = static_cast<int>(cols),
                                  .depth = static_cast<int>(rows.cols())};
  error = launch_groups<Along::kDepth, kAlongB, Grouped::kRows>(a, b, epilogue, problem, context);
  if constexpr (SplitsTail<Epilogue>)
    if (error == cudaSuccess && epilogue.parts != nullptr)
      return add_tail(epilogue.parts, problem, epilogue.c.data, context);
  return error;
}

/// To rows of y.
template <Along kAlongB>
cudaError_t multiply_to_rows(const TensorView& rows, const TensorView& offsets, const TensorView& weight,
                             const TensorView& y, const CudaContext& context) {
  StoreSplitRows epilogue;
  if (const cudaError_t error = panels_to(y, kPanelRows, &epilogue.c); error != cudaSuccess) return error;
  epilogue.parts = tail_parts(rows.cols(), context);
  return multiply_rows<kAlongB>(rows, offsets, weight, epilogue, context);
}

template <class Epilogue>
cudaError_t multiply_depths(const TensorView& dy, const TensorView& rows, const TensorView& offsets,
                            const TensorView& dweight, bool accumulate, const TensorView& squares,
                            const CudaContext& context) {
  using Block = GroupedBlock<Along::kRows, Along::kRows, Grouped::kDepth, Epilogue>;
  CUtensorMap a, b;
  Epilogue epilogue = {};
  epilogue.accumulate = accumulate;
  if (squares.present())
    epilogue.squares = {squares.as<double>(), static_cast<int>(squares.dim(1)),
                        static_cast<int>(squares.dim(2))};
  cudaError_t error = map_rows(dy, Block::StepA::kBoxRows, &a);
  if (error == cudaSuccess) error = map_rows(rows, Block::StepB::kBoxRows, &b);
  if (error == cudaSuccess) error = map_experts(dweight, kPanelRows, &epilogue.map);
  if (error != cudaSuccess) return error;
  return launch_groups<Along::kRows, Along::kRows, Grouped::kDepth>(
      a, b, epilogue,
      {.offsets = offsets.as<const int32_t>(),
       .experts = static_cast<int>(dweight.dim(0)),
       .rows = static_cast<int>(dweight.dim(1)),
       .cols = static_cast<int>(dweight.dim(2)),
       .depth = 0},
      context);
}

template <bool kMakesY>
cudaError_t multiply_with_swiglu_bwd(const TensorView& dy, const TensorView& offsets,
                                     const TensorView& weight, const TensorView& h, const TensorView& dh,
                                     const TensorView& y, const CudaContext& context) {
  StoreSwigluBwd<kMakesY> epilogue = {};
  cudaError_t error = map_rows(h, kGroupRows, &epilogue.h);
  if (error == cudaSuccess) error = panels_to(dh, kGroupRows, &epilogue.dh);
  if (error == cudaSuccess && kMakesY) error = panels_to(y, kGroupRows, &epilogue.y);
  if (error != cudaSuccess) return error;
  return multiply_rows<Along::kRows>(dy, offsets, weight, epilogue, context);
}

}  // namespace

bool available() { return has_hopper_code(); }

bool suits(int64_t tiles) { return tiles >= kEnoughTiles; }

int64_t tile_count(int64_t rows, int64_t cols) { return ceil_div(rows, Tile::kM) * ceil_div(cols, Tile::kN); }

bool can_map(std::initializer_list<const TensorView*> matrices) {
  return std::ranges::all_of(matrices, [](const TensorView* matrix) {
    return matrix->dtype == fb::DType::BF16 && matrix->elements() > 0 && matrix->cols() % 8 == 0 &&
           reinterpret_cast<uintptr_t>(matrix->data) % 16 == 0;
  });
}

cudaError_t grouped_linear(const TensorView& rows, const TensorView& offsets, const TensorView& weight,
                           const TensorView& y, const CudaContext& context) {
  return multiply_to_rows<Along::kDepth>(rows, offsets, weight, y, context);
}

cudaError_t grouped_linear_swiglu(const TensorView& rows, const TensorView& offsets, const TensorView& weight,
                                  const TensorView& h, const TensorView& y, const CudaContext& context) {
  StoreSwiglu epilogue;
  cudaError_t error = panels_to(h, kPanelRows, &epilogue.h);
  if (error == cudaSuccess) error = panels_to(y, kPanelRows, &epilogue.y);
  if (error != cudaSuccess) return error;
  return multiply_rows<Along::kDepth>(rows, offsets, weight, epilogue, context);
}

cudaError_t grouped_linear_bwd_input(const TensorView& dy, const TensorView& offsets,
                                     const TensorView& weight, const TensorView& drows,
                                     const CudaContext& context) {
  return multiply_to_rows<Along::kRows>(dy, offsets, weight, drows, context);
}

cudaError_t grouped_linear_bwd_input_swiglu(const TensorView& dy, const TensorView& offsets,
                                            const TensorView& weight, const TensorView& h,
                                            const TensorView& dh, const TensorView& y,
                                            const CudaContext& context) {
  return y.present() ? multiply_with_swiglu_bwd<true>(dy, offsets, weight, h, dh, y, context)
                     : multiply_with_swiglu_bwd<false>(dy, offsets, weight, h, dh, y, context);
}

cudaError_t grouped_linear_bwd_weight(const TensorView& dy, const TensorView& rows, const TensorView& offsets,
                                      const TensorView& dweight, bool accumulate, const TensorView& squares,
                                      const CudaContext& context) {
  return dweight.dtype == fb::DType::F32
             ? multiply_depths<StoreGradient<float>>(dy, rows, offsets, dweight, accumulate, squares, context)
             : multiply_depths<StoreGradient<bf16>>(dy, rows, offsets, dweight, accumulate, squares, context);
}

}  // namespace moec::cuda::hopper
