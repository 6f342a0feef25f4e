// Gradient of the weights of experts: dweight[e] = dy^T rows over the rows of expert e, of which an expert
// may have none. Only the device knows how deep each product is.
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/grouped_linear.h"
#include "kernels/cuda/mma_tile.cuh"
#include "kernels/cuda/simt_tile.cuh"

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

template <class T, class A, class B, class C>
cudaError_t launch_product(const A& a, const B& b, const C& c, const TensorView& offsets,
                           const CudaContext& context) {
  const auto tiles = [&](int64_t size) {
    return (offsets.elements() - 1) * ceil_div(c.rows, size) * ceil_div(c.cols, size);
  };
  if constexpr (std::is_same_v<T, bf16>) {
    return tiles(MmaLarge::kM) >= kEnoughTiles
               ? launch_depths<MmaTile<MmaLarge, A, B, C>>(a, b, c, offsets, context)
               : launch_depths<MmaTile<MmaSmall, A, B, C>>(a, b, c, offsets, context);
  } else {
    if constexpr (std::is_same_v<T, float>) {
      if (tiles(SimtMedium::kM) >= kEnoughTiles)
        return launch_depths<SimtTile<SimtMedium, A, B>>(a, b, c, offsets, context);
    }
    return launch_depths<SimtTile<SimtSmall, A, B>>(a, b, c, offsets, context);
  }
}

}  // namespace

cudaError_t grouped_linear_bwd_weight(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &rows = call.inputs[1], &offsets = call.inputs[2],
                   &dweight = call.outputs[0];
  const auto capacity = static_cast<int>(rows.rows()), in = static_cast<int>(rows.cols());
  const auto out = static_cast<int>(dy.cols());
  const bool accumulate = call.inputs[3].present();
  if (hopper::can_map({&dy, &rows}) && reinterpret_cast<uintptr_t>(dweight.data) % 16 == 0 &&
      hopper::suits((offsets.elements() - 1) * hopper::tile_count(out, in)))
    return hopper::grouped_linear_bwd_weight(dy, rows, offsets, dweight, accumulate, context);
  return with_type(dy.dtype, [&]<class T>() {
    return with_gradient_type<T>(dweight.dtype, [&]<class G>() {
      const T *left = dy.as<const T>(), *right = rows.as<const T>();
      G* to = dweight.as<G>();
      const Factor<T, Along::kRows> a{left, out, out, capacity, runs_aligned(left, out)};
      const Factor<T, Along::kRows> b{right, in, in, capacity, runs_aligned(right, in)};
      const Result<G> c{to, in, out, in, nullptr, accumulate, runs_aligned(to, in)};
      return launch_product<T>(a, b, c, offsets, context);
    });
  });
}

}  // namespace moec::cuda
