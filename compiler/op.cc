#include "compiler/op.h"

#include <cmath>

#include "compiler/ops/ops.h"

namespace moec {

OpCall::OpCall(const OpDef& def, const fb::OpUnion& attrs, const std::string& label, const Graph& graph,
               std::vector<const TensorType*> inputs)
    : def_(def),
      attrs_(attrs),
      label_(label),
      graph_(graph),
      inputs_(std::move(inputs)),
      outputs_(def.kernel().outputs.size()),
      made_(outputs_.size(), false) {}

void OpCall::set_output(int i, TensorType type) {
  outputs_[static_cast<size_t>(i)] = std::move(type);
  made_[static_cast<size_t>(i)] = true;
}

void OpCall::require_positive(std::string_view attribute, double value) const {
  require(std::isfinite(value) && value > 0, "{} must be a positive number, not {}", attribute, value);
}

void OpCall::require_not_negative(std::string_view attribute, double value) const {
  require(std::isfinite(value) && value >= 0, "{} must be a number that is not negative, not {}", attribute,
          value);
}

void OpCall::fail(const std::string& message) const {
  compile_error("{} ({}): {}", label_, def_.key, message);
}

void no_backward(BackwardContext&) {}

std::span<const OpDef* const> op_table() {
  static const std::vector<const OpDef*> rows = {
#define OP(name) &ops::name,
#include "compiler/ops/op_table.def"
#undef OP
  };
  return rows;
}

const OpDef& find_op(std::string_view key) {
  for (const OpDef* def : op_table())
    if (def->key == key) return *def;
  compile_error("no op '{}'", key);
}

const OpDef* find_model_op(fb::Op attrs) {
  for (const OpDef* def : op_table())
    if (def->in_models && def->attrs == attrs) return def;
  return nullptr;
}

}  // namespace moec
