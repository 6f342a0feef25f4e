#include "compiler/cost_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "compiler/memory_problem.h"
#include "compiler/op.h"
#include "kernels/call_shapes.h"

namespace moec {
namespace {

constexpr Ceilings kDevices[] = {
#define DEVICE(name, kernels, bytes, half, single, wide, processors) \
  {#name, #kernels, bytes, half, single, wide, processors},
#include "compiler/costs.def"
#undef DEVICE
};

/// The numbers that a kernel works on; unaligned ones stand in rows that are no whole number of 16-byte
/// vectors.
enum class Numbers : uint8_t { any, f64, f32, f16, bf16, f16_unaligned, bf16_unaligned };

/// What calls of a kernel take on a device.
struct KernelCost {
  std::string_view kernels;  // of which devices
  std::string_view kernel;   // "all" for those without a row
  Numbers numbers;
  double most_flops;           // 0 for any
  double fixed;                // seconds
  double arithmetic, traffic;  // shares of the ceilings
  double block;                // output elements that one processor makes at a time; 0 for any number
};

constexpr KernelCost kCosts[] = {
#define COST(kernels, kernel, numbers, up_to, fixed_us, arithmetic, traffic, block) \
  {#kernels, #kernel, Numbers::numbers, up_to, fixed_us * 1e-6, arithmetic, traffic, block},
#include "compiler/costs.def"
#undef COST
};

/// Where there is no row for some numbers, those that are closest stand in.
Numbers stand_in(Numbers numbers) {
  switch (numbers) {
    case Numbers::f16_unaligned:
      return Numbers::bf16_unaligned;
    case Numbers::bf16_unaligned:
    case Numbers::f16:
      return Numbers::bf16;
    case Numbers::bf16:
    case Numbers::f64:
      return Numbers::f32;
    default:
      return Numbers::any;
  }
}

/// Rows for small problems stand in front of those for all.
const KernelCost& find_cost(std::string_view kernels, std::string_view kernel, Numbers numbers,
                            double flops) {
  const auto row = [&](std::string_view key, Numbers wanted) {
    return std::ranges::find_if(kCosts, [&](const KernelCost& c) {
      return c.kernels == kernels && c.kernel == key && c.numbers == wanted &&
             (c.most_flops == 0 || flops <= c.most_flops);
    });
  };
  for (;; numbers = stand_in(numbers)) {
    if (const auto found = row(kernel, numbers); found != std::end(kCosts)) return *found;
    if (numbers == Numbers::any) return *row("all", Numbers::any);
  }
}

double arithmetic_ceiling(const Ceilings& ceilings, Numbers numbers) {
  if (numbers == Numbers::f64) return ceilings.wide;
  return numbers == Numbers::f32 ? ceilings.single : ceilings.half;
}

/// By the first input and the first output, as call_shapes shows them.
Numbers numbers_of(const KernelCall& call) {
  Numbers numbers = Numbers::f32;
  for (const auto* operands : {&call.inputs, &call.outputs}) {
    const auto view = std::ranges::find_if(*operands, &TensorView::present);
    if (view == operands->end()) continue;
    constexpr int64_t kVectorBytes = 16;
    const bool aligned = view->cols() * dtype_size(view->dtype) % kVectorBytes == 0;
    if (view->dtype == fb::DType::F64) return Numbers::f64;
    if (view->dtype == fb::DType::BF16 && numbers != Numbers::bf16_unaligned)
      numbers = aligned ? Numbers::bf16 : Numbers::bf16_unaligned;
    if (view->dtype == fb::DType::F16 && numbers != Numbers::f16_unaligned)
      numbers = aligned ? Numbers::f16 : Numbers::f16_unaligned;
  }
  return numbers;
}

/// How much longer the busiest processor works than with blocks dealt out evenly: 1 for a great many.
double imbalance(const KernelCall& call, double block, int processors) {
  const auto output = std::ranges::find_if(call.outputs, &TensorView::present);
  if (block == 0 || output == call.outputs.end() || output->elements() == 0) return 1;
  const double rounds = static_cast<double>(output->elements()) / (block * processors);
  return std::ceil(rounds) / rounds;
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

const Ceilings* find_ceilings(std::string_view device) {
  const auto found = std::ranges::find_if(kDevices, [&](const Ceilings& d) { return d.device == device; });
  return found == std::end(kDevices) ? nullptr : found;
}

Work work_of(const Graph& graph, const Node& node) {
  const OpCall call = call_of(graph, node);
  const OpDef& def = *node.def;
  return {.flops = def.flops != nullptr ? def.flops(call) : static_cast<double>(call.output(0).elements()),
          .bytes = def.bytes != nullptr ? def.bytes(call) : operand_bytes(graph, node)};
}

CostModel::CostModel(std::string device) : device_(std::move(device)) {
  if (find_ceilings(device_) == nullptr)
    compile_error("no cost model is named '{}'; there are {}", device_, fmt::join(devices(), ", "));
}

std::vector<std::string> CostModel::devices() {
  std::vector<std::string> names;
  for (const Ceilings& ceilings : kDevices) names.emplace_back(ceilings.device);
  return names;
}

double CostModel::seconds(const Graph& graph, const Node& node) const {
  const KernelInfo& kernel = node.def->kernel();
  const KernelCall shapes = shapes_of(graph, node);
  if (!measured_.empty()) {
    const auto it = measured_.find(fmt::format("{}/{}", kernel.key, call_shapes(kernel, shapes)));
    if (it != measured_.end()) return it->second;
  }
  const Work work = work_of(graph, node);
  const Ceilings& ceilings = *find_ceilings(device_);
  const Numbers numbers = numbers_of(shapes);
  const KernelCost& cost = find_cost(ceilings.kernels, kernel.key, numbers, work.flops);
  return cost.fixed + imbalance(shapes, cost.block, ceilings.processors) *
                          std::max(work.flops / (cost.arithmetic * arithmetic_ceiling(ceilings, numbers)),
                                   work.bytes / (cost.traffic * ceilings.bytes));
}

double total_seconds(const Graph& graph, const CostModel& costs) {
  double seconds = 0;
  for (const Node& node : graph.nodes()) seconds += costs.seconds(graph, node);
  return seconds;
}

}  // namespace moec
