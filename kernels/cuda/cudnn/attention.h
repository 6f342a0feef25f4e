// Attention by cuDNN 9, to compare with and to fall back on. The build needs its headers; the machine may
// have the library, which is opened when the first call asks for it.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_kernels.h"

namespace moec::cuda {

enum class AttentionPass { kForward, kBackward };

/// A device's cuDNN, and the plans that it has made for attention, one for every shape.
class CudnnAttention {
 public:
  CudnnAttention();
  ~CudnnAttention();

  /// Whether the build and the machine have it.
  bool available();

  /// Whether cuDNN computes the call: bf16 or f16, heads of 64 or 128 elements, in scratch memory that is
  /// free now; a gradient where it is the same bits every time, which is known of compute capability 9.0.
  /// Makes the call's plan, unless there is one: that takes up to a second, and must not be in a capture.
  bool computes(AttentionPass pass, const KernelCall& call);

  /// Scratch memory on the device that any of the plans made so far needs.
  size_t workspace_bytes() const;

  /// Enqueues a call that computes() was true for.
  cudaError_t run(AttentionPass pass, const KernelCall& call, const CudaContext& context) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <AttentionPass kPass>
bool cudnn_computes(const KernelCall& call, const CudaContext& context) {
  return context.cudnn != nullptr && context.cudnn->computes(kPass, call);
}

template <AttentionPass kPass>
cudaError_t attention_cudnn(const KernelCall& call, const CudaContext& context) {
  return context.cudnn->run(kPass, call, context);
}

}  // namespace moec::cuda
