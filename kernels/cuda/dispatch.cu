// Moving token rows to their experts and back. An assignment is token * k + j; a slot is its place in the
// order sorted by expert. permutation: slot -> assignment, inverse: assignment -> slot. Only the R = T * k
// slots of the permutation are read or written, never the padding behind them.
#include "kernels/cuda/counting_sort.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {
namespace {

/// A warp reads the row of a token once and writes it to the token's slots.
template <class Unit>
__global__ void scatter_rows_kernel(const Unit* x, const int32_t* inverse, Unit* rows, int64_t tokens, int k,
                                    int units) {
  begin_kernel();
  const int64_t token = group_row<kWarp>();
  if (token >= tokens) return;
  const Unit* row = x + token * units;
  const auto held = hold_places<kWarp>(units, [row](int64_t i) { return row[i]; });
#pragma unroll 4  // so that several rows are on their way together
  for (int64_t a = token * k; a < (token + 1) * k; ++a) {
    Unit* out = rows + int64_t{__ldg(inverse + a)} * units;
    held.for_each([out](int64_t i, const Unit& unit) { out[i] = unit; });
  }
}

/// y[t] = residual[t] + sum_j weight(t*k + j) * rows[inverse[t,j]], in this order; a warp has kWarp vectors
/// of a token and takes kTogether assignments, which divide k, at a time. Weights are 1 without `weights`; y
/// may be the residual. What is read here for the last time makes room in the cache for rows that were just
/// written.
template <class T, int kWidth, int kTogether>
__global__ void gather_rows_kernel(const T* rows, const int32_t* inverse, const Accumulator<T>* weights,
                                   const T* residual, T* y, int64_t tokens, int k, int cols) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int vectors = cols / kWidth, parts = static_cast<int>(ceil_div(vectors, kWarp));
  const int64_t token = int64_t{blockIdx.x / parts} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int i = static_cast<int>(blockIdx.x) % parts * kWarp + group_lane<kWarp>();
  if (token >= tokens || i >= vectors) return;
  Acc sums[kWidth] = {};
  if (residual) unpack(load_once<kWidth>(residual + token * cols, i), sums);
  for (int64_t a = token * k; a < (token + 1) * k; a += kTogether) {
    const auto slots = load<kTogether>(inverse + a, 0);
    Vector<Acc, kTogether> factors;
    for (Acc& factor : factors.value) factor = 1;
    if (weights) factors = load<kTogether>(weights + a, 0);
    Packed<T, kWidth> values[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      values[j] = load_once<kWidth>(rows + int64_t{slots.value[j]} * cols, i);
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      Acc row[kWidth];
      unpack(values[j], row);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) sums[c] += factors.value[j] * row[c];
    }
  }
  store(y + token * cols, i, pack<T>(sums));
}

cudaError_t gather_rows(const CudaContext& context, const TensorView& rows, const TensorView& inverse,
                        const TensorView& weights, const TensorView& residual, const TensorView& y) {
  const int64_t tokens = y.rows(), k = inverse.elements() / std::max<int64_t>(tokens, 1);
  return with_type(rows.dtype, [&]<class T>() {
    return with_width<T>(y.cols(), {&rows, &residual, &y}, [&]<int kWidth>() {
      const auto gather = [&]<int kTogether>() {
        const int64_t parts = ceil_div(y.cols() / kWidth, kWarp);
        return launch(context, gather_rows_kernel<T, kWidth, kTogether>, group_blocks<kWarp>(tokens) * parts,
                      kThreads, rows.as<const T>(), inverse.as<const int32_t>(),
                      weights.as<const Accumulator<T>>(), residual.as<const T>(), y.as<T>(), tokens,
                      static_cast<int>(k), static_cast<int>(y.cols()));
      };
      if (whole_vectors(k, 4, {&inverse, &weights})) return gather.template operator()<4>();
      if (whole_vectors(k, 2, {&inverse, &weights})) return gather.template operator()<2>();
      return gather.template operator()<1>();
    });
  });
}

/// A warp writes drow = weight * dy, which may be the row, and dweight = the dot product of dy and the row.
template <class T, int kWidth>
__global__ void combine_bwd_kernel(const T* dy, const T* rows, const Accumulator<T>* weights,
                                   const int32_t* permutation, T* drows, Accumulator<T>* dweights,
                                   int64_t slots, int k, int cols) {
  begin_kernel();
  using Acc = Accumulator<T>;
  const int64_t slot = group_row<kWarp>();
  if (slot >= slots) return;
  rows += slot * cols;
  drows += slot * cols;
  const int vectors = cols / kWidth;
  // The row is on its way while the place of its token is looked up.
  const auto row = hold_places<kWarp>(vectors, [rows](int64_t i) { return load_packed<kWidth>(rows, i); });
  const int assignment = permutation[slot];
  const Acc weight = weights[assignment];
  dy += int64_t{assignment / k} * cols;
  const auto gradient = hold_places<kWarp>(vectors, [dy](int64_t i) { return load_packed<kWidth>(dy, i); });
  Acc dot = 0;
  row.for_each(gradient, [&](int64_t i, const Packed<T, kWidth>& r, const Packed<T, kWidth>& g) {
    Acc values[kWidth], d[kWidth];
    unpack(r, values);
    unpack(g, d);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      dot += d[j] * values[j];
      d[j] *= weight;
    }
    store(drows, i, pack<T>(d));
  });
  dot = group_reduce<kWarp>(dot);
  if (group_lane<kWarp>() == 0) dweights[assignment] = dot;
}

}  // namespace

cudaError_t expert_index(const KernelCall& call, const CudaContext& context) {
  const TensorView& experts = call.inputs[0];
  return counting_sort(context, {.keys = experts.as<const int32_t>(),
                                 .n = experts.elements(),
                                 .shift = 0,
                                 .mask = INT32_MAX,
                                 .buckets = static_cast<int>(call.outputs[0].elements() - 1),
                                 .order_in = nullptr,
                                 .order = call.outputs[1].as<int32_t>(),
                                 .places = call.outputs[2].as<int32_t>(),
                                 .offsets = call.outputs[0].as<int32_t>(),
                                 .counts = call.workspace.as<int32_t>()});
}

cudaError_t dispatch(const KernelCall& call, const CudaContext& context) {
  const TensorView &x = call.inputs[0], &inverse = call.inputs[2], &rows = call.outputs[0];
  const int64_t tokens = x.rows(), row_bytes = x.cols() * dtype_size(x.dtype);
  const auto scatter = [&]<class Unit>() {
    return launch(context, scatter_rows_kernel<Unit>, group_blocks<kWarp>(tokens), kThreads,
                  x.as<const Unit>(), inverse.as<const int32_t>(), rows.as<Unit>(), tokens,
                  static_cast<int>(inverse.elements() / tokens),
                  static_cast<int>(row_bytes / static_cast<int64_t>(sizeof(Unit))));
  };
  return whole_vectors(row_bytes, sizeof(uint4), {&x, &rows}) ? scatter.template operator()<uint4>()
                                                              : scatter.template operator()<uint16_t>();
}

cudaError_t dispatch_bwd(const KernelCall& call, const CudaContext& context) {
  return gather_rows(context, call.inputs[0], call.inputs[1], {}, call.inputs[2], call.outputs[0]);
}

cudaError_t combine(const KernelCall& call, const CudaContext& context) {
  return gather_rows(context, call.inputs[0], call.inputs[2], call.inputs[1], call.inputs[4],
                     call.outputs[0]);
}

cudaError_t combine_bwd(const KernelCall& call, const CudaContext& context) {
  const TensorView &dy = call.inputs[0], &rows = call.inputs[1], &permutation = call.inputs[4];
  const TensorView& drows = call.outputs[0];
  const int64_t slots = permutation.elements(), cols = dy.cols();
  return with_type(rows.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    return with_width<T>(cols, {&dy, &rows, &drows}, [&]<int kWidth>() {
      return launch(context, combine_bwd_kernel<T, kWidth>, group_blocks<kWarp>(slots), kThreads,
                    dy.as<const T>(), rows.as<const T>(), call.inputs[2].as<const Acc>(),
                    permutation.as<const int32_t>(), drows.as<T>(), call.outputs[1].as<Acc>(), slots,
                    static_cast<int>(slots / dy.rows()), static_cast<int>(cols));
    });
  });
}

}  // namespace moec::cuda
