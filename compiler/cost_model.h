// Predicts how long instructions take on a device.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "compiler/graph.h"

namespace moec {

/// What a device does at best, per second.
struct Ceilings {
  const char* device;
  std::string_view kernels;   // whose rows of costs.def it has
  double bytes;               // copied, read plus written
  double half, single, wide;  // FLOP of a matrix product in bf16, f32, f64
  int processors;             // among which the blocks of a kernel are dealt out
};

/// Null for a device that costs.def does not know.
const Ceilings* find_ceilings(std::string_view device);

/// What a call of a kernel does.
struct Work {
  double flops = 0;
  double bytes = 0;  // that it moves at least, mostly every operand once
};
Work work_of(const Graph& graph, const Node& node);

/// Times from measurements where there are some, otherwise from the work: a fixed time, and the longer of
/// what arithmetic and memory traffic take at the shares of the device's ceilings that the kernel reaches
/// (compiler/costs.def). Where a kernel deals out blocks of its output, that time is of the processor with
/// the most blocks, and some processors may have none.
class CostModel {
 public:
  /// Throws CompileError for a device that costs.def does not know.
  explicit CostModel(std::string device);

  static std::vector<std::string> devices();

  const std::string& device() const { return device_; }

  /// Takes these seconds, by "kernel/shapes" (kernels/call_shapes.h), for the calls that they are there for.
  void set_measured(std::map<std::string, double> seconds) { measured_ = std::move(seconds); }

  double seconds(const Graph& graph, const Node& node) const;

 private:
  std::string device_;
  std::map<std::string, double> measured_;
};

/// Of all nodes, one after the other.
double total_seconds(const Graph& graph, const CostModel& costs);

}  // namespace moec
