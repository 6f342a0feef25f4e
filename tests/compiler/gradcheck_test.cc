// Every backward rule against central differences in f64, on the samples of its op.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/op_harness.h"

namespace moec::test {
namespace {

constexpr Precision kDouble{fb::DType::F64, fb::DType::F64};

/// The largest |analytic - numeric| over all elements of a tensor, relative to the tensor's largest
/// |numeric|; the worst tensor. Central differences with step h err by O(h^2) and O(eps/h): about 1e-9 here.
double worst_error(OpHarness& harness, const Tensors& values, const Tensors& gradients) {
  constexpr double kStep = 1e-5, kSmallest = 1e-3;
  double worst = 0;
  for (const std::string& name : harness.differentiable()) {
    const auto found = gradients.find(name);
    Tensors moved = values;
    double error = 0, scale = kSmallest;
    for (size_t i = 0; i < values.at(name).size(); ++i) {
      const double analytic = found == gradients.end() ? 0 : found->second[i];
      const double x = values.at(name)[i];
      moved[name][i] = x + kStep;
      const double above = harness.objective(moved);
      moved[name][i] = x - kStep;
      const double below = harness.objective(moved);
      moved[name][i] = x;
      const double numeric = (above - below) / (2 * kStep);
      if (std::isnan(analytic - numeric)) return INFINITY;
      error = std::max(error, std::abs(analytic - numeric));
      scale = std::max(scale, std::abs(numeric));
    }
    worst = std::max(worst, error / scale);
  }
  return worst;
}

constexpr double kTolerance = 1e-6;

/// One multiply-by-`factor` or pass-through where a rule should do something else.
OpDef with_rule(const OpDef& def, void (*rule)(BackwardContext&)) {
  OpDef changed = def;
  changed.backward = rule;
  return changed;
}

double error_of_rule(const OpDef& def, const fb::OpUnion& attrs, const std::vector<SampleInput>& inputs) {
  const Sample sample{"planted", inputs, "[]"};
  OpHarness harness(sample, kDouble, runtime::make_cpu_device(),
                    [&](Graph& graph, const std::map<std::string, ValueId>& values) {
                      std::vector<ValueId> operands;
                      for (const SampleInput& input : inputs) operands.push_back(values.at(input.name));
                      graph.add_node(def, attrs, "y", operands);
                      return graph.nodes().back().outputs;
                    });
  const Tensors values = harness.random_values(3);
  return worst_error(harness, values, harness.backward(values));
}

fb::OpUnion scale_by(float factor) {
  fb::ScaleT attrs;
  attrs.factor = factor;
  return make_attrs(attrs);
}

}  // namespace

TEST_CASE(
    "every op that models use has a backward rule or says that it has none, and samples if it has one") {
  for (const OpDef* def : op_table()) {
    CAPTURE(def->key);
    CHECK((def->infer != nullptr));
    CHECK((find_kernel(def->key) != nullptr));
    if (!def->in_models) continue;
    CHECK((def->backward != nullptr));
    if (def->backward != no_backward) CHECK((def->samples != nullptr));
  }
  for (const KernelInfo& kernel : kernel_catalog()) CHECK_NOTHROW((void)find_op(kernel.key));
}

TEST_CASE("an op gives its kernel the attributes that the kernel reads") {
  for (const OpDef* def : op_table()) {
    CAPTURE(def->key);
    CHECK(def->attrs == def->kernel().attributes);
  }
}

TEST_CASE("gradients equal central differences") {
  for (const OpDef* def : op_table()) {
    if (def->samples == nullptr) continue;
    for (const Sample& sample : def->samples()) {
      CAPTURE(def->key);
      CAPTURE(sample.name);
      OpHarness harness(sample, kDouble, runtime::make_cpu_device());
      const Tensors values = harness.random_values(1);
      Tensors gradients = harness.backward(values);
      REQUIRE_FALSE(gradients.empty());
      CHECK(worst_error(harness, values, gradients) < kTolerance);

      // The check itself must see a wrong sign, a wrong scale and a lost element of this very gradient.
      auto& [name, gradient] = *gradients.begin();
      const auto largest = std::max_element(gradient.begin(), gradient.end(),
                                            [](double a, double b) { return std::abs(a) < std::abs(b); });
      if (*largest == 0) continue;  // a single expert's renormalised weight is the constant 1
      const double right = *largest;
      for (const double wrong : {-right, right * 1.001, 0.0}) {
        *largest = wrong;
        CHECK(worst_error(harness, values, gradients) > kTolerance);
      }
    }
  }
}

TEST_CASE("planted faults in backward rules are found") {
  const SampleInput a{"a", {3, 4}}, b{"b", {3, 4}};
  SUBCASE("right rules pass") {
    CHECK(error_of_rule(find_op("scale"), scale_by(-1), {a}) < kTolerance);
    CHECK(error_of_rule(find_op("mul"), make_attrs<fb::MulT>(), {a, b}) < kTolerance);
  }
  SUBCASE("wrong sign") {
    const OpDef planted = with_rule(find_op("scale"), [](BackwardContext& c) { c.pass(0, c.grad(0)); });
    CHECK(error_of_rule(planted, scale_by(-1), {a}) > kTolerance);
  }
  SUBCASE("wrong scale") {
    const OpDef planted = with_rule(find_op("scale"), [](BackwardContext& c) { c.pass(0, c.grad(0)); });
    CHECK(error_of_rule(planted, scale_by(1.01f), {a}) > kTolerance);
  }
  SUBCASE("missing term of a product") {
    const OpDef planted = with_rule(find_op("mul"), [](BackwardContext& c) {
      c.emit("mul", {c.grad(0), c.input(1)}, {0});
    });
    CHECK(error_of_rule(planted, make_attrs<fb::MulT>(), {a, b}) > kTolerance);
  }
  SUBCASE("missing term of the router's derivative") {
    const OpDef planted = with_rule(find_op("router"), [](BackwardContext& c) {
      c.emit("router_bwd", {c.grad(0), kNoValue, c.output(2), c.output(1), c.output(0)}, {0});
    });
    fb::RouterT attrs;
    attrs.top_k = 2;
    CHECK(error_of_rule(planted, make_attrs(attrs), {a}) > kTolerance);
  }
}

}  // namespace moec::test
