// The train state as an operand of kernels under test.
#pragma once

#include <cstring>

#include "kernels/train_state.h"
#include "tests/kernels/kernel_test.h"

namespace moec::test {

inline Tensor state_tensor(const TrainState& state) {
  Tensor tensor(fb::DType::U8, {static_cast<int64_t>(sizeof(TrainState))});
  std::memcpy(tensor.view().data, &state, sizeof(TrainState));
  return tensor;
}

inline TrainState state_of(const Tensor& tensor) {
  TrainState state;
  std::memcpy(&state, tensor.view().data, sizeof(TrainState));
  return state;
}

}  // namespace moec::test
