// What selects tokens: the batch of a step, and the last position of a prompt.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/shuffle.h"
#include "kernels/train_state.h"

namespace moec::cpu {

/// The window holds at least seq_len + 1 valid tokens, as the runtime checks.
void load_batch(const KernelCall& call) {
  const TensorView &tokens = call.outputs[0], &targets = call.outputs[1];
  const int32_t* window = call.inputs[0].as<const int32_t>();
  const TrainState& state = *call.inputs[1].as<const TrainState>();
  const auto& attrs = call.attrs<fb::LoadBatchT>();
  const int64_t batch = tokens.rows(), seq_len = tokens.cols();
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t* first = window + sequence_start(state, attrs.sampling, attrs.evaluate, batch, seq_len, b);
    std::copy_n(first, seq_len, tokens.as<int32_t>() + b * seq_len);
    std::copy_n(first + 1, seq_len, targets.as<int32_t>() + b * seq_len);
  }
}

void select_token(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &y = call.outputs[0];
  const int64_t last = call.inputs[1].as<const TrainState>()->last_token;
  const int64_t row_bytes = x.cols() * dtype_size(x.dtype);
  for (int64_t b = 0; b < x.dim(0); ++b)
    std::memcpy(y.as<char>() + b * row_bytes, x.as<char>() + (b * x.dim(1) + last) * row_bytes,
                static_cast<size_t>(row_bytes));
}

}  // namespace moec::cpu
