// Moving whole rows.
#pragma once

#include "kernels/cuda/reduce.cuh"

namespace moec::cuda {

/// A warp copies a row.
template <class Unit, class Source>
__global__ void copy_rows_kernel(const Unit* from, Unit* to, int64_t rows, int64_t units, Source source) {
  begin_kernel();
  const int64_t row = group_row<kWarp>();
  if (row >= rows) return;
  const Unit* in = from + source(row) * units;
  Unit* out = to + row * units;
  hold_places<kWarp>(units, [in](int64_t i) { return in[i]; }).for_each([out](int64_t i, const Unit& unit) {
    out[i] = unit;
  });
}

/// to[row] = from[source(row)] for the first `rows` rows of `to`; the views share their row length and are of
/// any type of two bytes or more.
template <class Source>
cudaError_t copy_rows(const CudaContext& context, const TensorView& from, const TensorView& to, int64_t rows,
                      Source source) {
  const int64_t row_bytes = to.cols() * dtype_size(to.dtype);
  const auto copy = [&]<class Unit>() {
    return launch(context, copy_rows_kernel<Unit, Source>, group_blocks<kWarp>(rows), kThreads,
                  from.as<const Unit>(), to.as<Unit>(), rows, row_bytes / static_cast<int64_t>(sizeof(Unit)),
                  source);
  };
  return whole_vectors(row_bytes, sizeof(uint4), {&from, &to}) ? copy.template operator()<uint4>()
                                                               : copy.template operator()<uint16_t>();
}

}  // namespace moec::cuda
