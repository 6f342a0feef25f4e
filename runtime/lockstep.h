// Two devices side by side: the same instructions on the same operands, to find the one that computes
// something else.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "runtime/device.h"
#include "runtime/status.h"

namespace moec::runtime {

/// The output of an instruction in which two devices differ most, measured by tolerances.
struct Comparison {
  fb::ProgramKind program{};
  size_t index = 0;  // of the instruction in its program
  const fb::InstructionT* instruction = nullptr;
  std::string output;    // name of the tensor
  size_t element = 0;    // where they differ most
  double a = 0, b = 0;   // the values there
  double absolute = 0;   // |a - b|; infinite when one of them is NaN
  double relative = 0;   // |a - b| / the largest magnitude that the tensor has on device a
  double tolerance = 0;  // that `relative` may reach

  bool agrees() const { return relative <= tolerance; }
};

/// Largest relative difference that different orders of summation explain: of a tensor's largest magnitude,
/// and nothing for integers.
double lockstep_tolerance(fb::DType dtype);

/// Runs a program on both devices, which hold the same plan, instruction by instruction. Before each, `b`
/// gets the bytes of all its operands from `a`, so that differences do not add up and what a kernel leaves
/// alone stays equal. An error of `report` ends the run.
Status run_lockstep(Device& a, Device& b, fb::ProgramKind kind,
                    const std::function<Status(const Comparison&)>& report);

}  // namespace moec::runtime
