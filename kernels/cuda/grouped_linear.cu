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
#include "kernels/cuda/variants.h"
#include "kernels/workspace.h"

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

/// Chooses the engine by type.
template <class T, class A, class B, class C>
cudaError_t launch_product(bool large, const A& a, const B& b, const C& c, const TensorView& offsets,
                           const CudaContext& context) {
  if constexpr (std::is_same_v<T, bf16>) {
    return large ? launch_rows<MmaTile<MmaLarge, A, B, C>>(a, b, c, offsets, context)
                 : launch_rows<MmaTile<MmaSmall, A, B, C>>(a, b, c, offsets, context);
  } else {
    if constexpr (std::is_same_v<T, float>) {
      if (large) return launch_rows<SimtTile<SimtMedium, A, B>>(a, b, c, offsets, context);
    }
    return launch_rows<SimtTile<SimtSmall, A, B>>(a, b, c, offsets, context);
  }
}

/// y = rows times the weight of their expert, or its transpose along kRows (+ bias).
struct ExpertProduct {
  const TensorView& rows;
  const TensorView& offsets;
  const TensorView& weight;
  const TensorView* bias;
  const TensorView& y;
  Along along;
};

template <class T, Along kAlong>
cudaError_t multiply_portable(bool large, const ExpertProduct& product, const CudaContext& context) {
  const TensorView &rows = product.rows, &weight = product.weight, &y = product.y;
  const auto capacity = static_cast<int>(rows.rows()), in = static_cast<int>(rows.cols());
  const auto out = static_cast<int>(y.cols());
  const T *from = rows.as<const T>(), *weights = weight.as<const T>();
  const T* bias = product.bias == nullptr ? nullptr : product.bias->as<const T>();
  T* to = y.as<T>();
  const Factor<T, Along::kDepth> a{from, in, capacity, in, runs_aligned(from, in)};
  const Factor<T, kAlong> b{weights, weight.cols(), out, in, runs_aligned(weights, weight.cols())};
  const Result<T> c{to, out, capacity, out, bias, false, runs_aligned(to, out)};
  return launch_product<T>(large, a, b, c, product.offsets, context);
}

/// The ways to compute products of experts. An activation is part of kHopper's, and a pass of its own else.
enum class Way { kHopper, kHopperSplit, kLarge, kSmall };

bool computes(Way way, const ExpertProduct& product) {
  switch (way) {
    case Way::kHopper:
    case Way::kHopperSplit:
      return (product.bias == nullptr || !product.bias->present()) &&
             hopper::can_map({&product.rows, &product.weight, &product.y}) && hopper::available();
    case Way::kLarge:
      return product.y.dtype == fb::DType::BF16 || product.y.dtype == fb::DType::F32;
    case Way::kSmall:
      return true;
  }
  return false;
}

/// By type, shape and the most tiles there can be.
Way choose(const ExpertProduct& product) {
  const TensorView& y = product.y;
  if (computes(Way::kHopper, product) && hopper::suits(hopper::tile_count(y.rows(), y.cols())))
    return Way::kHopper;
  const int64_t size = y.dtype == fb::DType::BF16 ? int64_t{MmaLarge::kM} : int64_t{SimtMedium::kM};
  const bool large = ceil_div(y.rows(), size) * ceil_div(y.cols(), size) >= kEnoughTiles;
  return large && computes(Way::kLarge, product) ? Way::kLarge : Way::kSmall;
}

cudaError_t multiply(Way way, const ExpertProduct& product, const CudaContext& context) {
  if (way == Way::kHopper || way == Way::kHopperSplit)
    return product.along == Along::kDepth
               ? hopper::grouped_linear(product.rows, product.offsets, product.weight, product.y, context)
               : hopper::grouped_linear_bwd_input(product.rows, product.offsets, product.weight, product.y,
                                                  context);
  const bool large = way == Way::kLarge;
  return with_type(product.y.dtype, [&]<class T>() {
    return product.along == Along::kDepth ? multiply_portable<T, Along::kDepth>(large, product, context)
                                          : multiply_portable<T, Along::kRows>(large, product, context);
  });
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

ExpertProduct forward(const KernelCall& call) {
  return {call.inputs[0], call.inputs[1], call.inputs[2], &call.inputs[3], call.outputs[0], Along::kDepth};
}

ExpertProduct input_gradient(const KernelCall& call) {
  return {call.inputs[0], call.inputs[1], call.inputs[2], nullptr, call.outputs[0], Along::kRows};
}

/// To `dy`, the gradient of what SwiGLU made of h.
ExpertProduct activation_product(const KernelCall& call, const TensorView& dy) {
  return {call.inputs[0], call.inputs[1], call.inputs[2], nullptr, dy, Along::kRows};
}

/// One of the products above, alone.
template <ExpertProduct (*kProduct)(const KernelCall&)>
struct Alone {
  static bool computes(Way way, const KernelCall& call) { return cuda::computes(way, kProduct(call)); }
  static Way choose(const KernelCall& call) { return cuda::choose(kProduct(call)); }
  static cudaError_t run(Way way, const KernelCall& call, const CudaContext& context) {
    return multiply(way, kProduct(call), context);
  }
};

struct WithSwiglu {
  static bool computes(Way way, const KernelCall& call) {
    return cuda::computes(way, forward(call)) && (way != Way::kHopper || hopper::can_map({&call.outputs[1]}));
  }
  static Way choose(const KernelCall& call) {
    const Way way = cuda::choose(forward(call));
    return computes(way, call) ? way : Way::kHopperSplit;
  }
  static cudaError_t run(Way way, const KernelCall& call, const CudaContext& context) {
    const TensorView &h = call.outputs[0], &y = call.outputs[1];
    if (way == Way::kHopper)
      return hopper::grouped_linear_swiglu(call.inputs[0], call.inputs[1], call.inputs[2], h, y, context);
    const cudaError_t error = multiply(way, forward(call), context);
    return error == cudaSuccess ? swiglu(part_of(call, {h}, {y}), context) : error;
  }
};

struct WithSwigluBwd {
  static bool computes(Way way, const KernelCall& call) {
    return cuda::computes(way, activation_product(call, activation_gradient(call))) &&
           (way != Way::kHopper || hopper::can_map({&call.inputs[3], &call.outputs[0]}));
  }
  static Way choose(const KernelCall& call) {
    const Way way = cuda::choose(activation_product(call, activation_gradient(call)));
    return computes(way, call) ? way : Way::kHopperSplit;
  }
  static cudaError_t run(Way way, const KernelCall& call, const CudaContext& context) {
    const TensorView &h = call.inputs[3], &dh = call.outputs[0], &y = call.outputs[1];
    if (way == Way::kHopper)
      return hopper::grouped_linear_bwd_input_swiglu(call.inputs[0], call.inputs[1], call.inputs[2], h, dh, y,
                                                     context);
    const TensorView activation = activation_gradient(call);
    const cudaError_t error = multiply(way, activation_product(call, activation), context);
    return error == cudaSuccess ? swiglu_bwd(part_of(call, {activation, h}, {dh, y}), context) : error;
  }
};

template <class Kernel>
cudaError_t run_chosen(const KernelCall& call, const CudaContext& context) {
  return Kernel::run(Kernel::choose(call), call, context);
}

template <class Kernel, Way kWay>
constexpr CudaVariant variant(std::string_view kernel, std::string_view name) {
  return {
      kernel, name, [](const KernelCall& call, const CudaContext&) { return Kernel::computes(kWay, call); },
      [](const KernelCall& call, const CudaContext& context) { return Kernel::run(kWay, call, context); }};
}

}  // namespace

cudaError_t grouped_linear(const KernelCall& call, const CudaContext& context) {
  return run_chosen<Alone<forward>>(call, context);
}

cudaError_t grouped_linear_bwd_input(const KernelCall& call, const CudaContext& context) {
  return run_chosen<Alone<input_gradient>>(call, context);
}

cudaError_t grouped_linear_swiglu(const KernelCall& call, const CudaContext& context) {
  return run_chosen<WithSwiglu>(call, context);
}

cudaError_t grouped_linear_bwd_input_swiglu(const KernelCall& call, const CudaContext& context) {
  return run_chosen<WithSwigluBwd>(call, context);
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

std::span<const CudaVariant> grouped_linear_variants() {
  using Forward = Alone<forward>;
  using InputGradient = Alone<input_gradient>;
  static constexpr CudaVariant kVariants[] = {
      variant<Forward, Way::kHopper>("grouped_linear", "hopper"),
      variant<Forward, Way::kLarge>("grouped_linear", "large"),
      variant<Forward, Way::kSmall>("grouped_linear", "small"),
      variant<InputGradient, Way::kHopper>("grouped_linear_bwd_input", "hopper"),
      variant<InputGradient, Way::kLarge>("grouped_linear_bwd_input", "large"),
      variant<InputGradient, Way::kSmall>("grouped_linear_bwd_input", "small"),
      variant<WithSwiglu, Way::kHopper>("grouped_linear_swiglu", "hopper"),
      variant<WithSwiglu, Way::kHopperSplit>("grouped_linear_swiglu", "hopper.split"),
      variant<WithSwiglu, Way::kLarge>("grouped_linear_swiglu", "large"),
      variant<WithSwiglu, Way::kSmall>("grouped_linear_swiglu", "small"),
      variant<WithSwigluBwd, Way::kHopper>("grouped_linear_bwd_input_swiglu", "hopper"),
      variant<WithSwigluBwd, Way::kHopperSplit>("grouped_linear_bwd_input_swiglu", "hopper.split"),
      variant<WithSwigluBwd, Way::kLarge>("grouped_linear_bwd_input_swiglu", "large"),
      variant<WithSwigluBwd, Way::kSmall>("grouped_linear_bwd_input_swiglu", "small")};
  return kVariants;
}

}  // namespace moec::cuda
