#include "bench/call_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/call_shapes.h"

namespace moec::bench {
namespace {

TensorView shape_view(const fb::TensorT* tensor) {
  TensorView view;
  if (tensor == nullptr) return view;
  view.dtype = tensor->dtype;
  view.rank = static_cast<int>(tensor->shape.size());
  std::copy(tensor->shape.begin(), tensor->shape.end(), view.shape.begin());
  return view;
}

}  // namespace

std::string row_name(const runtime::LoadedPlan& plan, const fb::InstructionT& instruction) {
  KernelCall call;
  for (const int id : instruction.inputs) call.inputs.push_back(shape_view(plan.tensor(id)));
  for (const int id : instruction.outputs) call.outputs.push_back(shape_view(plan.tensor(id)));
  return fmt::format("kernel/{}/{}/{}", instruction.kernel, plan.plan.model->name,
                     call_shapes(*find_kernel(instruction.kernel), call));
}

}  // namespace moec::bench
