// A model in the middle of training on random tokens: where the kernels under test get their operands from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/plan.h"
#include "runtime/status.h"
#include "runtime/tuning/lane.h"

namespace moec::tuning {

/// `count` tokens in [0, vocab_size), the same ones every time.
std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size);

/// The contents of a tensor of a plan.
struct Contents {
  int tensor = -1;
  std::vector<std::byte> bytes;
};

class LiveModel {
 public:
  /// Loads the plan and takes one optimizer step.
  static Result<LiveModel> create(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane);

  const runtime::LoadedPlan& plan() const { return device_->plan(); }
  const runtime::Device& device() const { return *device_; }

  /// Runs the program up to instruction `index`; returns the inputs that it finds.
  Result<std::vector<Contents>> capture(fb::ProgramKind program, size_t index);

 private:
  explicit LiveModel(std::unique_ptr<runtime::Device> device) : device_(std::move(device)) {}

  Status start();
  Result<std::vector<Contents>> read_inputs(const fb::InstructionT& instruction);

  std::unique_ptr<runtime::Device> device_;
};

}  // namespace moec::tuning
