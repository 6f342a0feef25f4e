// One instruction as a plan of its own.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "plan_generated.h"
#include "runtime/device.h"
#include "runtime/status.h"
#include "runtime/tuning/lane.h"

namespace moec::tuning {

/// The variant that a single kernel is told to use, empty where the device chooses; and the model of that
/// device.
struct Demand {
  std::string variant;
  std::string model;
};

/// One kernel, run as often as the lane repeats it. Every operand has memory of its own, except outputs that
/// must update an input in place: what a kernel only reads stays as it was written, and every run does the
/// same work.
class SingleKernel {
 public:
  /// `instruction` with the tensors of `plan`, and the variant demanded; its memory is zeroed.
  static Result<SingleKernel> create(const fb::PlanT& plan, const fb::InstructionT& instruction,
                                     const Work& work, const Lane& lane, const Demand& demand = {});

  /// Sets an operand; `tensor` is its id in the plan.
  Status write(int tensor, std::span<const std::byte> bytes);

  /// Runs of a call of run().
  int runs() const { return runs_; }
  /// Seconds of one of them: on the device, or, where there are several, of all from the call to completion
  /// over their number.
  Result<double> run();

 private:
  SingleKernel(std::unique_ptr<runtime::Device> device, std::vector<std::map<int, int>> copies, int runs)
      : device_(std::move(device)), copies_(std::move(copies)), runs_(runs) {}

  std::unique_ptr<runtime::Device> device_;
  std::vector<std::map<int, int>> copies_;  // per set of operands: tensors of the plan to those of the device
  int runs_;
};

}  // namespace moec::tuning
