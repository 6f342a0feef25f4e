// Gradient of the weights of experts: dweight[e] = dy^T rows over the rows of expert e, of which an expert
// may have none. Only the device knows how deep each product is.
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/grouped_linear.h"
#include "kernels/cuda/mma_tile.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt_tile.cuh"
#include "kernels/cuda/variants.h"
#include "kernels/gradient_squares.h"

namespace moec::cuda {
namespace {

/// As in grouped_linear.cu.
constexpr int64_t kEnoughTiles = 128;

/// Block (x, y) computes tile x, rows first, of the gradient of expert y; a and b are the factors of a
/// product over all rows, c the gradient of the first expert.
template <class Tile, class A, class B, class C>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    multiply_depths(A a, B b, C c, const int32_t* offsets) {
  begin_kernel();
  using Shape = typename Tile::Shape;
  const int64_t expert = blockIdx.y;
  const int begin = offsets[expert];
  a.data = a.at(0, begin);
  b.data = b.at(0, begin);
  a.depth = b.depth = offsets[expert + 1] - begin;
  c.data += expert * c.rows * c.cols;
  const int row_tiles = (c.rows + Shape::kM - 1) / Shape::kM, tile = static_cast<int>(blockIdx.x);
  Tile::run(a, b, c, tile % row_tiles * Shape::kM, tile / row_tiles * Shape::kN, dynamic_shared());
}

template <class Tile, class A, class B, class C>
cudaError_t launch_depths(const A& a, const B& b, const C& c, const TensorView& offsets,
                          const CudaContext& context) {
  using Shape = typename Tile::Shape;
  const dim3 grid(static_cast<unsigned>(ceil_div(c.rows, Shape::kM) * ceil_div(c.cols, Shape::kN)),
                  static_cast<unsigned>(offsets.elements() - 1));
  return launch_grid(context, multiply_depths<Tile, A, B, C>, grid, Tile::kThreads, Tile::kSharedBytes, a, b,
                     c, offsets.as<const int32_t>());
}

/// Block i sums the squares of piece i of dweight[E,rows,cols].
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(const T* dweight, int64_t rows, int64_t cols, int64_t row_pieces, int64_t col_pieces,
                       double* squares) {
  begin_kernel();
  const int64_t band = blockIdx.x / col_pieces, row = band % row_pieces * kSquaresRows;
  const int64_t col = blockIdx.x % col_pieces * kSquaresCols + threadIdx.x;
  static_assert(kThreads == kSquaresCols);
  double sum = 0;
  if (col < cols)
    for (int64_t i = row; i < min(rows, row + kSquaresRows); ++i) {
      const double value = static_cast<Accumulator<T>>(dweight[(band / row_pieces * rows + i) * cols + col]);
      sum += value * value;
    }
  sum = group_reduce<kThreads>(sum);
  if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

cudaError_t sum_squares(const TensorView& dweight, const TensorView& squares, const CudaContext& context) {
  return with_type(dweight.dtype, [&]<class T>() {
    return launch(context, sum_squares_kernel<T>, squares.elements(), kThreads, dweight.as<const T>(),
                  dweight.dim(1), dweight.dim(2), squares.dim(1), squares.dim(2), squares.as<double>());
  });
}

template <class T, class A, class B, class C>
cudaError_t launch_product(bool large, const A& a, const B& b, const C& c, const TensorView& offsets,
                           const CudaContext& context) {
  if constexpr (std::is_same_v<T, bf16>) {
    return large ? launch_depths<MmaTile<MmaLarge, A, B, C>>(a, b, c, offsets, context)
                 : launch_depths<MmaTile<MmaSmall, A, B, C>>(a, b, c, offsets, context);
  } else {
    if constexpr (std::is_same_v<T, float>) {
      if (large) return launch_depths<SimtTile<SimtMedium, A, B>>(a, b, c, offsets, context);
    }
    return launch_depths<SimtTile<SimtSmall, A, B>>(a, b, c, offsets, context);
  }
}

enum class Way { kHopper, kLarge, kSmall };

template <Way kWay>
bool computes(const KernelCall& call, const CudaContext&) {
  const TensorView &dy = call.inputs[0], &rows = call.inputs[1], &dweight = call.outputs[0];
  switch (kWay) {
    case Way::kHopper:
      return hopper::can_map({&dy, &rows}) && reinterpret_cast<uintptr_t>(dweight.data) % 16 == 0 &&
             hopper::available();
    case Way::kLarge:
      return dy.dtype == fb::DType::BF16 || dy.dtype == fb::DType::F32;
    case Way::kSmall:
      return true;
  }
  return false;
}

template <Way kWay>
cudaError_t run(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &rows = call.inputs[1], &offsets = call.inputs[2],
                   &dweight = call.outputs[0], &squares = call.outputs[1];
  const bool accumulate = call.inputs[3].present();
  if (kWay == Way::kHopper && !(accumulate && squares.present()))
    return hopper::grouped_linear_bwd_weight(dy, rows, offsets, dweight, accumulate, squares, context);
  const auto capacity = static_cast<int>(rows.rows()), in = static_cast<int>(rows.cols());
  const auto out = static_cast<int>(dy.cols());
  const cudaError_t error = with_type(dy.dtype, [&]<class T>() {
    return with_gradient_type<T>(dweight.dtype, [&]<class G>() {
      const T *left = dy.as<const T>(), *right = rows.as<const T>();
      G* to = dweight.as<G>();
      const Factor<T, Along::kRows> a{left, out, out, capacity, runs_aligned(left, out)};
      const Factor<T, Along::kRows> b{right, in, in, capacity, runs_aligned(right, in)};
      const Result<G> c{to, in, out, in, nullptr, accumulate, runs_aligned(to, in)};
      return launch_product<T>(kWay == Way::kLarge, a, b, c, offsets, context);
    });
  });
  return error == cudaSuccess && squares.present() ? sum_squares(dweight, squares, context) : error;
}

}  // namespace

cudaError_t grouped_linear_bwd_weight(const KernelCall& call, const CudaContext& context) {
  const int64_t experts = call.inputs[2].elements() - 1;
  const int64_t out = call.inputs[0].cols(), in = call.inputs[1].cols();
  if (computes<Way::kHopper>(call, context) && hopper::suits(experts * hopper::tile_count(out, in)))
    return run<Way::kHopper>(call, context);
  const int64_t size =
      call.inputs[0].dtype == fb::DType::BF16 ? int64_t{MmaLarge::kM} : int64_t{SimtMedium::kM};
  const bool large = experts * ceil_div(out, size) * ceil_div(in, size) >= kEnoughTiles;
  return large && computes<Way::kLarge>(call, context) ? run<Way::kLarge>(call, context)
                                                       : run<Way::kSmall>(call, context);
}

std::span<const CudaVariant> grouped_linear_bwd_weight_variants() {
  static constexpr CudaVariant kVariants[] = {
      {"grouped_linear_bwd_weight", "hopper", computes<Way::kHopper>, run<Way::kHopper>},
      {"grouped_linear_bwd_weight", "large", computes<Way::kLarge>, run<Way::kLarge>},
      {"grouped_linear_bwd_weight", "small", computes<Way::kSmall>, run<Way::kSmall>}};
  return kVariants;
}

}  // namespace moec::cuda
