#include "kernels/call_shapes.h"

#include <algorithm>
#include <cctype>

namespace moec {
namespace {

/// "f32[8,128,64]"; empty for an absent operand.
std::string type_text(const TensorView& view) {
  if (!view.present()) return "";
  std::string text = fb::EnumNameDType(view.dtype);
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (int i = 0; i < view.rank; ++i) text.append(i == 0 ? "[" : ",").append(std::to_string(view.dim(i)));
  return text.append(view.rank == 0 ? "[]" : "]");
}

/// The first operand that is there.
std::string first_type(const std::vector<TensorView>& operands) {
  const auto found = std::ranges::find_if(operands, &TensorView::present);
  return found == operands.end() ? "" : type_text(*found);
}

/// "+bias" for each optional operand that is there.
std::string optional_names(const std::vector<Operand>& declared, const std::vector<TensorView>& operands) {
  std::string text;
  for (size_t i = 0; i < std::min(declared.size(), operands.size()); ++i)
    if (declared[i].optional && operands[i].present()) text.append("+").append(declared[i].name);
  return text;
}

}  // namespace

std::string call_shapes(const KernelInfo& kernel, const KernelCall& call) {
  const std::string input = first_type(call.inputs), output = first_type(call.outputs);
  std::string text = input;
  if (output != input) text.append("->").append(output);
  text += optional_names(kernel.inputs, call.inputs) + optional_names(kernel.outputs, call.outputs);
  if (!kernel.inputs.empty() && kernel.inputs.back().variadic) {
    int64_t elements = 0;
    for (size_t i = kernel.inputs.size() - 1; i < call.inputs.size(); ++i)
      elements += call.inputs[i].elements();
    text.append("*").append(std::to_string(elements));
  }
  return text;
}

}  // namespace moec
