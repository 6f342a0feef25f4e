#include "compiler/cost_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "compiler/memory_problem.h"
#include "compiler/op.h"
#include "kernels/call_signature.h"

namespace moec {
namespace {

/// What a device does at best, per second.
struct Ceilings {
  const char* device;
  double bytes;               // copied, read plus written
  double half, single, wide;  // FLOP of a matrix product in bf16, f32, f64
};

constexpr Ceilings kDevices[] = {
#define DEVICE(name, bytes, half, single, wide) {#name, bytes, half, single, wide},
#include "compiler/costs.def"
#undef DEVICE
};

/// What calls of a kernel take on a device.
struct KernelCost {
  const char* device;
  std::string_view kernel;     // "*" for those without a row
  double fixed;                // seconds
  double arithmetic, traffic;  // shares of the ceilings
};

constexpr KernelCost kCosts[] = {
#define COST(device, kernel, fixed_us, arithmetic, traffic) \
  {#device, kernel, fixed_us * 1e-6, arithmetic, traffic},
#include "compiler/costs.def"
#undef COST
};

const KernelCost& find_cost(const std::string& device, std::string_view kernel) {
  const auto row = [&](std::string_view key) {
    return std::ranges::find_if(kCosts,
                                [&](const KernelCost& c) { return c.device == device && c.kernel == key; });
  };
  const auto found = row(kernel);
  return found != std::end(kCosts) ? *found : *row("*");
}

const Ceilings* find_device(std::string_view name) {
  const auto found = std::ranges::find_if(kDevices, [&](const Ceilings& d) { return d.device == name; });
  return found == std::end(kDevices) ? nullptr : found;
}

double arithmetic_ceiling(const Ceilings& ceilings, fb::DType compute) {
  switch (compute) {
    case fb::DType::F64:
      return ceilings.wide;
    case fb::DType::F32:
      return ceilings.single;
    default:
      return ceilings.half;
  }
}

OpCall call_of(const Graph& graph, const Node& node) {
  std::vector<const TensorType*> types;
  for (const ValueId id : node.inputs) types.push_back(id == kNoValue ? nullptr : &graph.value(id).type);
  OpCall call(*node.def, node.attrs, node.label, graph, types);
  for (size_t i = 0; i < node.outputs.size(); ++i)
    if (node.outputs[i] != kNoValue) call.set_output(static_cast<int>(i), graph.value(node.outputs[i]).type);
  return call;
}

double operand_bytes(const Graph& graph, const Node& node) {
  int64_t bytes = 0;
  for (const auto* list : {&node.inputs, &node.outputs})
    for (const ValueId id : *list)
      if (id != kNoValue) bytes += graph.value(id).type.bytes();
  return static_cast<double>(bytes);
}

}  // namespace

Work work_of(const Graph& graph, const Node& node) {
  const OpCall call = call_of(graph, node);
  const OpDef& def = *node.def;
  return {.flops = def.flops != nullptr ? def.flops(call) : static_cast<double>(call.output(0).elements()),
          .bytes = def.bytes != nullptr ? def.bytes(call) : operand_bytes(graph, node)};
}

CostModel::CostModel(std::string device) : device_(std::move(device)) {
  if (find_device(device_) == nullptr)
    compile_error("no cost model is named '{}'; there are {}", device_, fmt::join(devices(), ", "));
}

std::vector<std::string> CostModel::devices() {
  std::vector<std::string> names;
  for (const Ceilings& ceilings : kDevices) names.emplace_back(ceilings.device);
  return names;
}

double CostModel::seconds(const Graph& graph, const Node& node) const {
  if (!measured_.empty())
    if (const auto it = measured_.find(call_signature(node.def->key, shapes_of(graph, node)));
        it != measured_.end())
      return it->second;
  const Work work = work_of(graph, node);
  const Ceilings& ceilings = *find_device(device_);
  const KernelCost& cost = find_cost(device_, node.def->key);
  const double arithmetic =
      work.flops / (cost.arithmetic * arithmetic_ceiling(ceilings, graph.precision().compute));
  return cost.fixed + std::max(arithmetic, work.bytes / (cost.traffic * ceilings.bytes));
}

double total_seconds(const Graph& graph, const CostModel& costs) {
  double seconds = 0;
  for (const Node& node : graph.nodes()) seconds += costs.seconds(graph, node);
  return seconds;
}

}  // namespace moec
