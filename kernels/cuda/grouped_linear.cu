// Affine maps with one weight per expert. Rows offsets[e] to offsets[e+1] belong to expert e; rows from the
// last offset on are padding, which is neither read nor written.
#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cuda/bias_gradient.cuh"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/grouped_linear.h"
#include "kernels/cuda/mma_tile.cuh"
#include "kernels/cuda/simt_tile.cuh"

namespace moec::cuda {
namespace {

/// A product of this many tiles fills a device; with fewer, tiles are smaller. A constant, so that results
/// are the same on every device.
constexpr int64_t kEnoughTiles = 128;

/// The tiles of a result whose rows are grouped by expert, in the order of experts, columns, rows: blocks
/// that run together share columns of the weight. Tiles are sought in ascending order.
template <int kM>
class ExpertTiles {
 public:
  __device__ ExpertTiles(const int32_t* offsets, int experts, int col_tiles)
      : offsets_(offsets), experts_(experts), col_tiles_(col_tiles) {
    open();
  }

  /// Moves to a tile; false if there are not so many.
  __device__ bool seek(int64_t tile) {
    while (expert_ < experts_ && tile - first_ >= int64_t{row_tiles_} * col_tiles_) {
      first_ += int64_t{row_tiles_} * col_tiles_;
      ++expert_;
      open();
    }
    place_ = static_cast<int>(tile - first_);
    return expert_ < experts_;
  }

  __device__ int expert() const { return expert_; }
  __device__ int row() const { return begin_ + place_ % row_tiles_ * kM; }
  __device__ int end() const { return end_; }  // of the expert's rows
  __device__ int col_tile() const { return place_ / row_tiles_; }

 private:
  __device__ void open() {
    if (expert_ == experts_) return;
    begin_ = offsets_[expert_];
    end_ = offsets_[expert_ + 1];
    row_tiles_ = (end_ - begin_ + kM - 1) / kM;
  }

  const int32_t* offsets_;
  int experts_, col_tiles_;
  int expert_ = 0;
  int64_t first_ = 0;  // tile of the expert
  int begin_ = 0, end_ = 0, row_tiles_ = 0;
  int place_ = 0;  // of the tile among those of the expert
};

/// c = rows times the weight of their expert (+ its bias). A fixed number of blocks take turns at the tiles,
/// of which only the device knows how many there are. a.rows and c.rows are set per expert; b is the weight
/// of the first one.
template <class Tile, class A, class B, class C>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    multiply_rows(A a, B b, C c, const int32_t* offsets, int experts) {
  begin_kernel();
  using Shape = typename Tile::Shape;
  ExpertTiles<Shape::kM> tiles(offsets, experts, (c.cols + Shape::kN - 1) / Shape::kN);
  for (int64_t tile = blockIdx.x; tiles.seek(tile); tile += gridDim.x) {
    const int64_t expert = tiles.expert();
    B weight = b;
    C out = c;
    weight.data += expert * b.rows * b.depth;
    if (c.bias) out.bias += expert * c.cols;
    a.rows = out.rows = tiles.end();
    Tile::run(a, weight, out, tiles.row(), tiles.col_tile() * Shape::kN, dynamic_shared());
  }
}

template <class Tile, class A, class B, class C>
cudaError_t launch_rows(const A& a, const B& b, const C& c, const TensorView& offsets,
                        const CudaContext& context) {
  using Shape = typename Tile::Shape;
  const int64_t experts = offsets.elements() - 1;
  const int64_t most = (ceil_div(c.rows, Shape::kM) + experts) * ceil_div(c.cols, Shape::kN);
  const int64_t resident = int64_t{context.sm_count} * std::max(Tile::kBlocksPerSm, 2);
  const dim3 grid(static_cast<unsigned>(std::min(most, resident)));
  return launch_grid(context, multiply_rows<Tile, A, B, C>, grid, Tile::kThreads, Tile::kSharedBytes, a, b, c,
                     offsets.as<const int32_t>(), static_cast<int>(experts));
}

/// Chooses the engine by type and the tile by the most tiles there can be.
template <class T, class A, class B, class C>
cudaError_t launch_product(const A& a, const B& b, const C& c, const TensorView& offsets,
                           const CudaContext& context) {
  const auto tiles = [&](int64_t size) { return ceil_div(c.rows, size) * ceil_div(c.cols, size); };
  if constexpr (std::is_same_v<T, bf16>) {
    return tiles(MmaLarge::kM) >= kEnoughTiles
               ? launch_rows<MmaTile<MmaLarge, A, B, C>>(a, b, c, offsets, context)
               : launch_rows<MmaTile<MmaSmall, A, B, C>>(a, b, c, offsets, context);
  } else {
    if constexpr (std::is_same_v<T, float>) {
      if (tiles(SimtMedium::kM) >= kEnoughTiles)
        return launch_rows<SimtTile<SimtMedium, A, B>>(a, b, c, offsets, context);
    }
    return launch_rows<SimtTile<SimtSmall, A, B>>(a, b, c, offsets, context);
  }
}

/// y = rows b (+ bias), b being the weight, or its transpose along kAlong = kDepth.
template <class T, Along kAlong>
cudaError_t multiply_experts(const TensorView& rows, const TensorView& offsets, const TensorView& weight,
                             const TensorView& bias, const TensorView& y, const CudaContext& context) {
  const auto capacity = static_cast<int>(rows.rows()), in = static_cast<int>(rows.cols());
  const auto out = static_cast<int>(y.cols());
  const T *from = rows.as<const T>(), *weights = weight.as<const T>();
  T* to = y.as<T>();
  const Factor<T, Along::kDepth> a{from, in, capacity, in, runs_aligned(from, in)};
  const Factor<T, kAlong> b{weights, weight.cols(), out, in, runs_aligned(weights, weight.cols())};
  const Result<T> c{to, out, capacity, out, bias.as<const T>(), false, runs_aligned(to, out)};
  return launch_product<T>(a, b, c, offsets, context);
}

/// Whether the kernels for Hopper are to compute the rows `result`.
bool suits_hopper(const TensorView& result, std::initializer_list<const TensorView*> factors) {
  return hopper::can_map(factors) && hopper::can_map({&result}) &&
         hopper::suits(hopper::tile_count(result.rows(), result.cols()));
}

/// A call of another kernel that does part of the work of `call`; neither needs a workspace.
KernelCall part_of(const KernelCall& call, std::vector<TensorView> inputs, std::vector<TensorView> outputs) {
  return {std::move(inputs), std::move(outputs), {}, call.op};
}

/// Block (x, y) sums a group of columns of expert y.
template <class T, class TOut>
__global__ void __launch_bounds__(kSumThreads)
    sum_expert_columns(const T* dy, const int32_t* offsets, int64_t cols, TOut* dbias, bool accumulate) {
  begin_kernel();
  auto sum = column_sum(dy, offsets[blockIdx.y], offsets[blockIdx.y + 1], cols);
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kSumCols + threadIdx.x;
  if (threadIdx.x >= kSumCols || col >= cols) return;
  TOut* to = dbias + blockIdx.y * cols + col;
  if (accumulate) sum += widen(*to);
  *to = to_storage<TOut>(sum);
}

}  // namespace

cudaError_t grouped_linear(const KernelCall& call, const CudaContext& context) {
  const TensorView &rows = call.inputs[0], &weight = call.inputs[2], &bias = call.inputs[3],
                   &y = call.outputs[0];
  if (!bias.present() && suits_hopper(y, {&rows, &weight}))
    return hopper::grouped_linear(rows, call.inputs[1], weight, y, context);
  return with_type(call.inputs[0].dtype, [&]<class T>() {
    return multiply_experts<T, Along::kDepth>(rows, call.inputs[1], weight, bias, y, context);
  });
}

cudaError_t grouped_linear_bwd_input(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &weight = call.inputs[2], &drows = call.outputs[0];
  if (suits_hopper(drows, {&dy, &weight}))
    return hopper::grouped_linear_bwd_input(dy, call.inputs[1], weight, drows, context);
  return with_type(call.inputs[0].dtype, [&]<class T>() {
    return multiply_experts<T, Along::kRows>(dy, call.inputs[1], weight, {}, drows, context);
  });
}

cudaError_t grouped_linear_swiglu(const KernelCall& call, const CudaContext& context) {
  const TensorView &rows = call.inputs[0], &offsets = call.inputs[1], &weight = call.inputs[2],
                   &bias = call.inputs[3], &h = call.outputs[0], &y = call.outputs[1];
  if (!bias.present() && hopper::can_map({&y}) && suits_hopper(h, {&rows, &weight}))
    return hopper::grouped_linear_swiglu(rows, offsets, weight, h, y, context);
  const cudaError_t error = grouped_linear(part_of(call, call.inputs, {h}), context);
  return error == cudaSuccess ? swiglu(part_of(call, {h}, {y}), context) : error;
}

cudaError_t grouped_linear_bwd_input_swiglu(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &offsets = call.inputs[1], &weight = call.inputs[2],
                   &h = call.inputs[3], &dh = call.outputs[0], &y = call.outputs[1];
  if (hopper::can_map({&h, &dh}) && suits_hopper(y, {&dy, &weight}))
    return hopper::grouped_linear_bwd_input_swiglu(dy, offsets, weight, h, dh, y, context);
  const TensorView& activation_gradient = y;  // until y takes its place
  const cudaError_t error =
      grouped_linear_bwd_input(part_of(call, {dy, offsets, weight}, {activation_gradient}), context);
  return error == cudaSuccess ? swiglu_bwd(part_of(call, {activation_gradient, h}, {dh, y}), context) : error;
}

cudaError_t grouped_bias_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &offsets = call.inputs[1], &dbias = call.outputs[0];
  const dim3 grid(static_cast<unsigned>(ceil_div(dy.cols(), kSumCols)),
                  static_cast<unsigned>(offsets.elements() - 1));
  return with_type(dy.dtype, [&]<class T>() {
    return with_gradient_type<T>(dbias.dtype, [&]<class G>() {
      return launch_grid(context, sum_expert_columns<T, G>, grid, kSumThreads, 0, dy.as<const T>(),
                         offsets.as<const int32_t>(), dy.cols(), dbias.as<G>(), call.inputs[2].present());
    });
  });
}

}  // namespace moec::cuda
