#include <algorithm>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/types.h"
#include "kernels/random.h"
#include "kernels/train_state.h"

namespace moec::cpu {
namespace {

constexpr int64_t kBlocks = 64;  // generator blocks of four elements that are made together

/// factor[i] = 1 / (1 - p) where element 4 * first_block + i is kept, else 0.
template <class Acc>
void dropout_factors(const TrainState& state, const fb::DropoutT& dropout, int64_t first_block,
                     Acc factor[4 * kBlocks]) {
  const uint64_t seed = state.seed;
  const int64_t micro_batch = state.micro_batch;
  const uint32_t stream = dropout.stream;
  uint32_t words[4][kBlocks];
  for (int64_t b = 0; b < kBlocks; ++b) {
    const RandomBlock block =
        dropout_block(seed, stream, micro_batch, static_cast<uint64_t>(first_block + b));
    for (int i = 0; i < 4; ++i) words[i][b] = block.word[i];
  }
  const uint64_t threshold = dropout_threshold(dropout.p);
  const Acc kept = 1 / (1 - static_cast<Acc>(dropout.p));
  for (int64_t b = 0; b < kBlocks; ++b)
    for (int i = 0; i < 4; ++i) factor[4 * b + i] = words[i][b] >= threshold ? kept : 0;
}

}  // namespace

/// Its own backward: the same elements are kept and scaled. A dropped element is 0 whatever it was.
void dropout(const KernelCall& call) {
  const TensorView& x = call.inputs[0];
  const TrainState& state = *call.inputs[1].as<const TrainState>();
  dispatch(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    parallel_ranges(x.elements(), kPieceElements, [&](int64_t begin, int64_t end) {
      Acc factor[4 * kBlocks];
      for (int64_t chunk = begin; chunk < end; chunk += 4 * kBlocks) {
        dropout_factors(state, call.attrs<fb::DropoutT>(), chunk / 4, factor);
        const T* in = x.as<const T>() + chunk;
        T* out = call.outputs[0].as<T>() + chunk;
        const int64_t n = std::min(4 * kBlocks, end - chunk);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i)
          out[i] = static_cast<T>(factor[i] > 0 ? static_cast<Acc>(in[i]) * factor[i] : 0);
      }
    });
  });
}

}  // namespace moec::cpu
