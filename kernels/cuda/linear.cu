// Affine maps of the last dimension: y = x weight^T (+ bias), alone and with what precedes or follows them.
// x[R,I] and y[R,O] stand for any leading dimensions.
#include <algorithm>

#include "kernels/cuda/batched.h"
#include "kernels/cuda/bias_gradient.cuh"
#include "kernels/cuda/call_run.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/hopper/dense_product.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/variants.h"
#include "kernels/workspace.h"

namespace moec::cuda {
namespace {

/// Multiply-adds up to which a product is small.
constexpr int64_t kSmallProduct = int64_t{1} << 27;
/// Rows up to which columns are summed in one pass.
constexpr int64_t kSinglePassRows = 2048;

ProductMatrix as_matrix(const TensorView& tensor) {
  return {tensor.data, tensor.dtype, tensor.rows(), tensor.cols()};
}

/// Block (x, y) sums rows of its range y to row y of out[.., cols], or adds to it.
template <class T, class TOut>
__global__ void __launch_bounds__(kSumThreads)
    sum_columns(const T* in, int64_t rows, int64_t cols, int64_t range, TOut* out, bool accumulate) {
  begin_kernel();
  const int64_t begin = blockIdx.y * range;
  auto sum = column_sum(in, begin, min(begin + range, rows), cols);
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kSumCols + threadIdx.x;
  if (threadIdx.x >= kSumCols || col >= cols) return;
  TOut* to = out + blockIdx.y * cols + col;
  if (accumulate) sum += widen(*to);
  *to = to_storage<TOut>(sum);
}

/// The gradient dbias[O] of dy[R,O]. Many rows are summed in ranges, to partial sums [kColumnPartials, O] in
/// `workspace`, which are then added in order.
template <class T, class TOut>
cudaError_t launch_bias_bwd(const TensorView& dy, const TensorView& dbias, bool accumulate,
                            const TensorView& workspace, const CudaContext& context) {
  using Acc = Accumulator<T>;
  const int64_t rows = dy.rows(), cols = dy.cols();
  const int64_t groups = ceil_div(cols, kSumCols);
  const T* in = dy.as<const T>();
  TOut* out = dbias.as<TOut>();
  if (rows <= kSinglePassRows) {
    return launch(context, sum_columns<T, TOut>, groups, kSumThreads, in, rows, cols, rows, out, accumulate);
  }
  const int64_t range = ceil_div(rows, kColumnPartials), partials = ceil_div(rows, range);
  Acc* sums = workspace.as<Acc>();
  const cudaError_t error = launch_grid(context, sum_columns<T, Acc>,
                                        dim3(static_cast<unsigned>(groups), static_cast<unsigned>(partials)),
                                        kSumThreads, 0, in, rows, cols, range, sums, false);
  if (error != cudaSuccess) return error;
  return launch(context, sum_columns<Acc, TOut>, groups, kSumThreads, sums, partials, cols, partials, out,
                accumulate);
}

cudaError_t bias_gradient(const TensorView& dy, const TensorView& dbias, bool accumulate,
                          const TensorView& workspace, const CudaContext& context) {
  return with_type(dy.dtype, [&]<class T>() {
    return with_type(dbias.dtype, [&]<class TOut>() -> cudaError_t {
      if constexpr (std::is_same_v<Accumulator<T>, Accumulator<TOut>>)
        return launch_bias_bwd<T, TOut>(dy, dbias, accumulate, workspace, context);
      else
        return cudaErrorNotSupported;
    });
  });
}

/// Applies the epilogue to the sums at z, where y may lie; a thread per run of four.
template <EpilogueKind kKind, class T>
__global__ void epilogue_kernel(const T* z, T* y, int64_t n, bool aligned, Epilogue epilogue) {
  begin_kernel();
  const int64_t place = global_thread() * 4;
  if (place >= n) return;
  const int count = static_cast<int>(min(int64_t{4}, n - place));
  const bool whole = aligned && count == 4;
  const EpilogueRun<T> run = fetch_run<kKind, T>(epilogue, place, count, whole);
  Vector<Accumulator<T>, 4> sums;
  unpack(load_run(z + place, count, whole), sums.value);
  with_activation<kKind>(epilogue, [&]<class Activation>(Activation) {
    apply_epilogue<kKind, Activation>(epilogue, run, place, count, whole, sums);
  });
  store_run(y + place, count, whole, sums);
}

/// The ways to compute products: by our tiles, those for Hopper among them, or by cuBLASLt's best algorithms,
/// of which kCublas is the first.
enum class Way { kTiled, kHopper, kCublas, kCublas1, kCublas2, kCublas3 };

/// How many algorithms of cuBLASLt are better than that of `way`.
int algorithm_of(Way way) { return static_cast<int>(way) - static_cast<int>(Way::kCublas); }

cudaError_t multiply_alone(Way way, const Product& product, const CudaContext& context) {
  if (way == Way::kTiled) return multiply_tiled(product, context);
  if (way == Way::kHopper) return hopper::multiply_dense(product, context);
  return multiply_cublas(product, context, algorithm_of(way));
}

/// The product by cuBLASLt, and then its epilogue in a pass of its own.
cudaError_t multiply_in_two_passes(Way way, const Product& product, const CudaContext& context) {
  Product sums = product;
  sums.epilogue = {};
  Epilogue epilogue = product.epilogue;
  if (!epilogue.backward && epilogue.preactivation) {
    sums.c.data = epilogue.preactivation;
    epilogue.preactivation = nullptr;
  }
  const cudaError_t error = multiply_alone(way, sums, context);
  if (error != cudaSuccess) return error;
  const int64_t n = product.m() * product.n();
  return with_type(product.c.dtype, [&]<class T>() {
    const auto* z = static_cast<const T*>(sums.c.data);
    auto* y = static_cast<T*>(const_cast<void*>(product.c.data));
    const bool aligned = runs_aligned(z, 0) && runs_aligned(y, 0) &&
                         runs_aligned(static_cast<const T*>(epilogue.preactivation), 0) &&
                         runs_aligned(static_cast<const T*>(epilogue.residual), 0);
    const auto kernel = epilogue.backward ? epilogue_kernel<EpilogueKind::kBackward, T>
                                          : epilogue_kernel<EpilogueKind::kForward, T>;
    return launch(context, kernel, ceil_div(ceil_div(n, 4), kThreads), kThreads, z, y, n, aligned, epilogue);
  });
}

Product forward(const KernelCall& call) {
  return {.form = ProductForm::kForward,
          .a = as_matrix(call.inputs[0]),
          .b = as_matrix(call.inputs[1]),
          .c = as_matrix(call.outputs[0]),
          .bias = call.inputs[2].data};
}

Product fused_forward(const KernelCall& call) {
  const auto& attrs = call.attrs<fb::FusedLinearT>();
  const TensorView& state = call.inputs[4];
  const bool drops = state.present() && attrs.dropout_p > 0;
  Product product = forward(call);
  product.epilogue = {
      .activation = attrs.activation,
      .preactivation = call.outputs[1].data,
      .residual = call.inputs[3].data,
      .dropout =
          drops ? Dropout(state.as<const TrainState>(), attrs.dropout_stream, attrs.dropout_p) : Dropout()};
  return product;
}

Product input_gradient(const KernelCall& call) {
  return {.form = ProductForm::kInput,
          .a = as_matrix(call.inputs[0]),
          .b = as_matrix(call.inputs[1]),
          .c = as_matrix(call.outputs[0])};
}

Product fused_input_gradient(const KernelCall& call) {
  Product product = input_gradient(call);
  product.epilogue = {.activation = call.attrs<fb::FusedLinearT>().activation,
                      .backward = true,
                      .preactivation = call.inputs[2].data};
  return product;
}

Product weight_gradient(const KernelCall& call) {
  return {.form = ProductForm::kWeight,
          .a = as_matrix(call.inputs[0]),
          .b = as_matrix(call.inputs[1]),
          .c = as_matrix(call.outputs[0]),
          .accumulate = call.inputs[2].present()};
}

/// Whether cuBLASLt would leave most of the device idle.
bool is_small(const Product& product) {
  return product.a.dtype == product.b.dtype &&
         (product.a.dtype == fb::DType::F32 || product.a.dtype == fb::DType::BF16) &&
         product.m() * product.n() * product.k() <= kSmallProduct;
}

bool computes(Way way, const Product& product, const CudaContext& context) {
  if (way == Way::kTiled) return tiled_supports(product);
  if (way == Way::kHopper) return hopper::computes_dense(product, context);
  return algorithm_of(way) < cublas_algorithms(product, algorithm_of(way) + 1, context);
}

/// Small products in bf16 are as fast by cuBLASLt, but for those that would take a second pass, and layers of
/// so few inputs that a tile reads them at once.
Way choose(const Product& product, const CudaContext& context) {
  if (hopper::computes_dense(product, context) && hopper::suits_dense(product)) return Way::kHopper;
  constexpr int64_t kFewInputs = 128;
  const bool short_rows = product.form == ProductForm::kForward && product.k() <= kFewInputs;
  const bool ours = product.a.dtype == fb::DType::F32 || !product.epilogue.empty() || short_rows;
  return (is_small(product) && ours) || !cublas_supports(product) ? Way::kTiled : Way::kCublas;
}

cudaError_t multiply(Way way, const Product& product, const CudaContext& context) {
  return product.epilogue.empty() || way == Way::kTiled ? multiply_alone(way, product, context)
                                                        : multiply_in_two_passes(way, product, context);
}

/// The product of a linear or fused_linear layer.
Product forward_of(const KernelCall& layer) {
  const bool fused = layer.inputs.size() > 3;
  return fused ? fused_forward(layer) : forward(layer);
}

NormOperands operands_of(const KernelCall& norm) {
  const bool centred = norm.outputs.size() > 2;
  return centred ? layernorm_operands(norm) : rmsnorm_operands(norm);
}

bool has_bias(const KernelCall& call) { return call.outputs.size() > 1; }

/// The gradient of the bias; what stands for none where there is none.
BiasGradient bias_of(const KernelCall& call) {
  return has_bias(call) ? BiasGradient{call.outputs[1].data, call.inputs[3].present()} : BiasGradient{};
}

/// Whether the gradients of weight and bias take a single pass by our tiles.
bool differentiates_at_once(const KernelCall& call, const CudaContext& context) {
  return (!has_bias(call) || call.outputs[0].dtype == call.outputs[1].dtype) &&
         can_multiply_parameters(weight_gradient(call), context);
}

/// Whether they are made for running beside other kernels.
bool goes_beside(const KernelCall& call, const CudaContext& context) {
  const Product product = weight_gradient(call);
  return is_small(product) && differentiates_at_once(call, context) && can_multiply_beside(product, context);
}

/// Gradients of layers that all go beside, of the same types.
cudaError_t differentiate_beside(std::span<const KernelCall* const> calls, const CudaContext& context) {
  std::vector<Product> weights;
  std::vector<BiasGradient> biases;
  for (const KernelCall* call : calls) {
    weights.push_back(weight_gradient(*call));
    biases.push_back(bias_of(*call));
  }
  return multiply_beside(weights, biases, context);
}

cudaError_t differentiate_beside(const KernelCall& call, const CudaContext& context) {
  const KernelCall* const one = &call;
  return differentiate_beside({&one, 1}, context);
}

/// The gradients of weight and bias.
cudaError_t differentiate_parameters(Way way, const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &dbias = call.outputs[1];
  const bool accumulate = call.inputs[3].present();
  const Product product = weight_gradient(call);
  if (way == Way::kTiled && differentiates_at_once(call, context))
    return multiply_parameters(product, bias_of(call), context);
  const cudaError_t error = multiply(way, product, context);
  return error == cudaSuccess ? bias_gradient(dy, dbias, accumulate, call.workspace, context) : error;
}

/// The product of linear_rope, and its rotation, where it can be in the same pass.
bool rotates_at_once(const KernelCall& call, const CudaContext& context) {
  return hopper::computes_rotated(forward(call), call.attrs<fb::RopeT>(), context);
}

cudaError_t multiply_rotated(const KernelCall& call, const CudaContext& context) {
  return hopper::multiply_rotated(forward(call), call.attrs<fb::RopeT>(), call.outputs[0].dim(1), context);
}

/// The same in two passes.
cudaError_t rotate(cudaError_t multiplied, const KernelCall& call, const CudaContext& context) {
  const TensorView& y = call.outputs[0];
  return multiplied == cudaSuccess ? rope({{y}, {y}, {}, call.op}, context) : multiplied;
}

template <Way kWay>
bool computes_rotated_as(const KernelCall& call, const CudaContext& context) {
  return kWay == Way::kHopper ? rotates_at_once(call, context) : computes(kWay, forward(call), context);
}

template <Way kWay>
cudaError_t multiply_rotated_as(const KernelCall& call, const CudaContext& context) {
  return kWay == Way::kHopper ? multiply_rotated(call, context)
                              : rotate(multiply(kWay, forward(call), context), call, context);
}

template <Product (*kProduct)(const KernelCall&), Way kWay>
bool computes_as(const KernelCall& call, const CudaContext& context) {
  return computes(kWay, kProduct(call), context);
}

template <Product (*kProduct)(const KernelCall&), Way kWay>
cudaError_t multiply_as(const KernelCall& call, const CudaContext& context) {
  return multiply(kWay, kProduct(call), context);
}

template <Way kWay>
cudaError_t differentiate_parameters_as(const KernelCall& call, const CudaContext& context) {
  return differentiate_parameters(kWay, call, context);
}

/// A variant of every kernel; Hopper's products have no epilogue of fused_linear.
template <Way kWay>
void add_variants(std::string_view name, std::vector<CudaVariant>& to) {
  to.insert(
      to.end(),
      {{"linear", name, computes_as<forward, kWay>, multiply_as<forward, kWay>},
       {"linear_rope", name, computes_rotated_as<kWay>, multiply_rotated_as<kWay>},
       {"linear_bwd_input", name, computes_as<input_gradient, kWay>, multiply_as<input_gradient, kWay>},
       {"linear_bwd_weight", name, computes_as<weight_gradient, kWay>, multiply_as<weight_gradient, kWay>},
       {"linear_bwd_parameters", name, computes_as<weight_gradient, kWay>,
        differentiate_parameters_as<kWay>}});
  if constexpr (kWay != Way::kHopper)
    to.insert(to.end(),
              {{"fused_linear", name, computes_as<fused_forward, kWay>, multiply_as<fused_forward, kWay>},
               {"fused_linear_bwd_input", name, computes_as<fused_input_gradient, kWay>,
                multiply_as<fused_input_gradient, kWay>}});
}

/// Whether rows of the norm that are overwritten, or whose results are, may be read for other rows: a block
/// computes both calls for its own.
bool can_go_by_rows(const KernelCall& norm, const KernelCall& layer) {
  const std::span<const TensorView> rest = std::span(layer.inputs).subspan(1);
  return !overlap(norm.outputs, norm.inputs) && !overlap(norm.outputs, rest) &&
         !overlap(layer.outputs, norm.inputs) && !overlap(layer.outputs, norm.outputs) &&
         !overlap(layer.outputs, rest);
}

cudaError_t enqueue_norm_linear(std::span<const KeyedCall> calls, const CudaContext& context) {
  return multiply_normed(operands_of(*calls[0].call), forward_of(*calls[1].call), context);
}

}  // namespace

cudaError_t multiply(const Product& product, const CudaContext& context) {
  if (is_narrow(product)) return multiply_narrow(product, context);
  return multiply(choose(product, context), product, context);
}

cudaError_t linear(const KernelCall& call, const CudaContext& context) {
  return multiply(forward(call), context);
}

cudaError_t fused_linear(const KernelCall& call, const CudaContext& context) {
  return multiply(fused_forward(call), context);
}

CallRun norm_linear_run(std::span<const KeyedCall> sequence, const CudaContext& context) {
  const auto begins = [&](std::string_view norm, std::string_view layer) {
    return begins_with(sequence, {norm, layer});
  };
  if (!begins("layernorm", "linear") && !begins("layernorm", "fused_linear") &&
      !begins("rmsnorm", "linear") && !begins("rmsnorm", "fused_linear"))
    return {};
  const KernelCall &norm = *sequence[0].call, &layer = *sequence[1].call;
  const Product product = forward_of(layer);
  const bool suits = norm.outputs[0].data == layer.inputs[0].data && !is_narrow(product) &&
                     choose(product, context) == Way::kTiled &&
                     can_multiply_normed(operands_of(norm), product, context);
  if (!suits || !can_go_by_rows(norm, layer)) return {};
  return {2, {{enqueue_norm_linear, operands_of(sequence.first(2))}}};
}

cudaError_t linear_rope(const KernelCall& call, const CudaContext& context) {
  const Product product = forward(call);
  if (rotates_at_once(call, context) && hopper::suits_dense(product)) return multiply_rotated(call, context);
  return rotate(multiply(product, context), call, context);
}

cudaError_t linear_bwd_input(const KernelCall& call, const CudaContext& context) {
  return multiply(input_gradient(call), context);
}

cudaError_t fused_linear_bwd_input(const KernelCall& call, const CudaContext& context) {
  return multiply(fused_input_gradient(call), context);
}

cudaError_t linear_bwd_weight(const KernelCall& call, const CudaContext& context) {
  if (goes_beside(call, context)) return differentiate_beside(call, context);
  return multiply(weight_gradient(call), context);
}

cudaError_t linear_bwd_parameters(const KernelCall& call, const CudaContext& context) {
  if (goes_beside(call, context)) return differentiate_beside(call, context);
  const Product product = weight_gradient(call);
  const bool at_once = is_small(product) && differentiates_at_once(call, context);
  return differentiate_parameters(at_once ? Way::kTiled : choose(product, context), call, context);
}

cudaError_t linear_bwd_parameters_batched(std::span<const KernelCall* const> calls,
                                          const CudaContext& context) {
  const auto joins_first = [&](const KernelCall* call) {
    return goes_beside(*call, context) && call->inputs[0].dtype == calls[0]->inputs[0].dtype &&
           call->outputs[0].dtype == calls[0]->outputs[0].dtype;
  };
  if (std::ranges::all_of(calls, joins_first)) return differentiate_beside(calls, context);
  for (const KernelCall* call : calls) {
    const cudaError_t error =
        has_bias(*call) ? linear_bwd_parameters(*call, context) : linear_bwd_weight(*call, context);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t bias_bwd(const KernelCall& call, const CudaContext& context) {
  return bias_gradient(call.inputs[0], call.outputs[0], call.inputs[1].present(), call.workspace, context);
}

std::span<const CudaVariant> linear_variants() {
  static const std::vector<CudaVariant> variants = [] {
    std::vector<CudaVariant> all;
    add_variants<Way::kCublas>("cublas", all);
    add_variants<Way::kCublas1>("cublas.1", all);
    add_variants<Way::kCublas2>("cublas.2", all);
    add_variants<Way::kCublas3>("cublas.3", all);
    add_variants<Way::kTiled>("tiled", all);
    add_variants<Way::kHopper>("hopper", all);
    return all;
  }();
  return variants;
}

}  // namespace moec::cuda
