#include "compiler/autodiff.h"

#include "compiler/op.h"

namespace moec {
namespace {

class Autodiff final : public BackwardContext {
 public:
  Autodiff(Graph& graph, bool accumulate) : graph_(graph), accumulate_(accumulate) {}

  void run(const std::vector<std::pair<ValueId, ValueId>>& seeds) {
    gradients_.assign(graph_.values().size(), kNoValue);
    for (const auto& [value, gradient] : seeds) contribute(value, gradient);
    for (size_t i = graph_.nodes().size(); i-- > 0;) {
      node_ = graph_.nodes()[i];
      if (has_gradient()) node_.def->backward(*this);
    }
  }

  std::vector<ValueId> gradients() && { return std::move(gradients_); }

  ValueId input(int i) const override { return node_.inputs[static_cast<size_t>(i)]; }
  ValueId output(int i) const override { return node_.outputs[static_cast<size_t>(i)]; }
  ValueId grad(int i) const override { return gradient_of(output(i)); }

  void pass(int i, ValueId gradient) override {
    if (wants(i)) contribute(input(i), gradient);
  }

  void emit(std::string_view key, std::vector<ValueId> inputs, std::vector<int> targets) override {
    bool wanted = false;
    for (const int target : targets) wanted = wanted || wants(target);
    if (!wanted) return;

    const OpDef& def = find_op(key);
    const KernelInfo& kernel = def.kernel();
    inputs.resize(kernel.inputs.size(), kNoValue);
    std::vector<ValueId> outputs(kernel.outputs.size(), kNoValue);
    for (size_t j = 0; j < targets.size(); ++j) {
      if (!is_parameter(targets[j])) continue;
      const ValueId memory = gradient_memory(input(targets[j]));
      if (accumulate_ || graph_.value(memory).version > 0)
        inputs[static_cast<size_t>(previous_input(kernel, static_cast<int>(j)))] = memory;
      outputs[j] = graph_.next_version(memory);
    }
    const int added = graph_.add_node(def, node_.attrs, node_.label + ".backward", std::move(inputs),
                                      std::move(outputs), Phase::kBackward);
    const std::vector<ValueId> made = graph_.nodes()[static_cast<size_t>(added)].outputs;
    for (size_t j = 0; j < targets.size(); ++j)
      if (wants(targets[j]) && !is_parameter(targets[j])) contribute(input(targets[j]), made[j]);
  }

 private:
  bool has_gradient() const {
    for (const ValueId output : node_.outputs)
      if (output != kNoValue && gradient_of(output) != kNoValue) return true;
    return false;
  }

  ValueId gradient_of(ValueId value) const {
    return static_cast<size_t>(value) < gradients_.size() ? gradients_[static_cast<size_t>(value)] : kNoValue;
  }

  bool wants(int i) const { return input(i) != kNoValue && graph_.value(input(i)).requires_grad; }

  bool is_parameter(int i) const { return graph_.value(input(i)).role == Role::kParameter; }

  ValueId gradient_memory(ValueId parameter) {
    const Value& value = graph_.value(parameter);
    return graph_.persistent(gradient_name(value.name), {graph_.precision().gradient, value.type.shape},
                             Role::kGradient);
  }

  /// The input that output j of a kernel accumulates into.
  static int previous_input(const KernelInfo& kernel, int j) {
    for (const InPlace& pair : kernel.in_place)
      if (pair.required && pair.output == j) return pair.input;
    compile_error("kernel {} does not accumulate '{}'", kernel.key,
                  kernel.outputs[static_cast<size_t>(j)].name);
  }

  /// Adds to the gradient of an activation; several uses sum up in reverse order of use.
  void contribute(ValueId value, ValueId gradient) {
    ValueId& total = gradients_[static_cast<size_t>(value)];
    if (total == kNoValue) {
      total = gradient;
      return;
    }
    const int added =
        graph_.add_node(find_op("add"), make_attrs<fb::AddT>(), graph_.value(value).name + ".gradient",
                        {total, gradient}, {}, Phase::kBackward);
    total = graph_.nodes()[static_cast<size_t>(added)].outputs[0];
  }

  Graph& graph_;
  bool accumulate_;
  Node node_;  // a copy: the graph grows while its rule runs
  std::vector<ValueId> gradients_;
};

}  // namespace

std::string gradient_name(const std::string& parameter) { return "grad." + parameter; }

std::vector<ValueId> add_backward(Graph& graph, const std::vector<std::pair<ValueId, ValueId>>& seeds,
                                  bool accumulate) {
  Autodiff autodiff(graph, accumulate);
  autodiff.run(seeds);
  return std::move(autodiff).gradients();
}

}  // namespace moec
