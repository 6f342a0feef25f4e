#include <cmath>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"
#include "kernels/random.h"
#include "kernels/train_state.h"

namespace moec::cpu {
namespace {

template <class T>
void fill_as(const TensorView& y, T value) {
  parallel_ranges(y.elements(), kPieceElements,
                  [&](int64_t begin, int64_t end) { std::fill(y.as<T>() + begin, y.as<T>() + end, value); });
}

}  // namespace

void init_normal(const KernelCall& call) {
  const TensorView& y = call.outputs[0];
  const fb::InitNormalT& init = call.attrs<fb::InitNormalT>();
  const uint64_t seed = call.inputs[0].as<const TrainState>()->seed;
  dispatch(y.dtype, [&]<class T>() {
    static_assert(kPieceElements % 4 == 0, "a piece begins with a block of the generator");
    parallel_ranges(y.elements(), kPieceElements, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += 4) {
        const NormalBlock normals = initial_normals(seed, init.stream, static_cast<uint64_t>(i / 4));
        for (int64_t j = i; j < std::min(end, i + 4); ++j)
          y.as<T>()[j] =
              static_cast<T>(static_cast<Accumulator<T>>(init.mean + init.std * normals.value[j - i]));
      }
    });
  });
}

void fill(const KernelCall& call) {
  const TensorView& y = call.outputs[0];
  const double value = call.attrs<fb::FillT>().value;
  switch (y.dtype) {
    case fb::DType::I32:
      return fill_as(y, static_cast<int32_t>(value));
    case fb::DType::U16:
      return fill_as(y, static_cast<uint16_t>(value));
    case fb::DType::U8:
      return fill_as(y, static_cast<uint8_t>(value));
    default:
      dispatch(y.dtype, [&]<class T>() { fill_as(y, static_cast<T>(static_cast<Accumulator<T>>(value))); });
  }
}

}  // namespace moec::cpu
