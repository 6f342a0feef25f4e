// One instruction as a plan of its own.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "bench/lane.h"
#include "plan_generated.h"
#include "runtime/device.h"
#include "runtime/status.h"

namespace moec::bench {

/// Every operand has memory of its own, except outputs that must update an input in place: what a kernel only
/// reads stays as it was written, and every run does the same work.
class SingleKernel {
 public:
  /// `instruction` with the tensors of `plan`; its memory is zeroed.
  static Result<SingleKernel> create(const fb::PlanT& plan, const fb::InstructionT& instruction,
                                     const Lane& lane);

  /// Sets an operand; `tensor` is its id in the plan.
  Status write(int tensor, std::span<const std::byte> bytes) { return device_->write(tensor, 0, bytes); }

  /// Runs once; seconds on the device.
  Result<double> run();

 private:
  explicit SingleKernel(std::unique_ptr<runtime::Device> device) : device_(std::move(device)) {}

  std::unique_ptr<runtime::Device> device_;
};

}  // namespace moec::bench
