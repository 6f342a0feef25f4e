// The part of a call of attention_bwd_rope that is attention_bwd's.
#pragma once

#include <utility>

#include "kernels/kernel.h"

namespace moec {

/// A call with the same operands and the attributes of attention.
class AttentionPart {
 public:
  explicit AttentionPart(const KernelCall& whole) : call_(whole) {
    const auto& rope = whole.attrs<fb::RopeT>();
    fb::AttentionT attention;
    attention.heads = rope.heads;
    attention.kv_heads = rope.kv_heads;
    attention.head_dim = rope.head_dim;
    op_.Set(std::move(attention));
    call_.op = &op_;
  }
  AttentionPart(const AttentionPart&) = delete;
  AttentionPart& operator=(const AttentionPart&) = delete;

  const KernelCall& call() const { return call_; }

 private:
  fb::OpUnion op_;
  KernelCall call_;
};

}  // namespace moec
