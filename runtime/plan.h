// A plan file in memory: checked once, unpacked once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "plan_generated.h"
#include "runtime/status.h"

namespace moec::runtime {

/// A plan that has passed every check that needs no device.
struct LoadedPlan {
  std::string source;  // where it came from, for messages
  std::string bytes;   // the file
  fb::PlanT plan;      // the file, unpacked

  /// The program of this kind, nullptr when the plan has none.
  const fb::ProgramT* program(fb::ProgramKind kind) const;
  /// The tensor with this id, nullptr for -1.
  const fb::TensorT* tensor(int id) const;
  /// Index into plan.parameters, -1 when there is no such name.
  int parameter_index(std::string_view name) const;
};

/// Floating-point operations and bytes moved by one run of a program, as the compiler counted them. What is
/// computed again counts as bytes, but not as operations of the model.
struct ProgramCost {
  uint64_t flops = 0;
  uint64_t bytes = 0;
};
ProgramCost cost_of(const fb::ProgramT& program);

/// The variant of its kernel that an instruction of the plan chooses; empty where it leaves that to the
/// device.
std::string_view variant_of(const fb::PlanT& plan, const fb::InstructionT& instruction);

/// Shapes of an instruction of the plan, as call_shapes() of kernels/call_shapes.h shows them.
std::string call_shapes(const fb::PlanT& plan, const fb::InstructionT& instruction);

/// Reads and checks a plan file: identifier, FlatBuffers verifier, version, and the independent validator. An
/// unsound file is an input error of one line that names it and the fault.
Result<std::shared_ptr<const LoadedPlan>> load_plan(const std::string& path);

/// The same from memory; `source` stands for the path in messages.
Result<std::shared_ptr<const LoadedPlan>> parse_plan(std::string bytes, const std::string& source);

}  // namespace moec::runtime
