// What the shapes of a call's operands have in common, as data (operand_shapes.def).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/kernel.h"

namespace moec {

struct KernelInfo;

/// Sizes of the plan that a call is part of, by which rows name dimensions.
struct PlanSizes {
  int64_t batch_size = 0, seq_len = 0, vocab_size = 0;
};

/// A row of operand_shapes.def.
class ShapeRule {
 public:
  /// No row: every call fits.
  ShapeRule() = default;
  /// `text` for a kernel whose operands are known; throws std::logic_error where it does not fit them.
  ShapeRule(const KernelInfo& kernel, std::string_view text);

  bool empty() const { return row_ == nullptr; }

  /// What is wrong with the shapes of a call, in one line that names the operand, its shape and the expected
  /// one; empty where they fit. The call has the operands that `kernel` declares, and its attributes.
  std::string misfit(const KernelInfo& kernel, const KernelCall& call, const PlanSizes& plan) const;

  struct Row;

 private:
  std::shared_ptr<const Row> row_;
};

}  // namespace moec
