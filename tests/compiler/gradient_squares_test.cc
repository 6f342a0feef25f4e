// The norm of gradients whose squares are summed by the kernels that write them.
#include <doctest/doctest.h>

#include <set>
#include <string>
#include <vector>

#include "compiler/compile.h"
#include "runtime/device.h"
#include "tests/support/must.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

constexpr int64_t kNever = INT64_MAX;

fb::ModelT small_model(uint32_t grad_accum, fb::DType dtype) {
  fb::ModelT model = example_model("moe-tiny");
  model.recipe->batch_size = 2;
  model.recipe->seq_len = 16;
  model.recipe->grad_accum = grad_accum;
  model.recipe->dtype = dtype;
  model.recipe->clip_norm = 0.5;
  return model;
}

/// Gradients whose squares are summed by the kernels that write them.
size_t sums_of_squares(const fb::PlanT& plan) {
  std::set<std::string> names;
  for (const auto& tensor : plan.tensors)
    if (tensor->name.starts_with("squares.")) names.insert(tensor->name);
  return names.size();
}

std::vector<runtime::StepMetrics> train(const fb::ModelT& model, int64_t least_summed_elements) {
  const CompileOptions options{.window_tokens = 1 << 16, .least_summed_elements = least_summed_elements};
  CHECK(sums_of_squares(compile(model, options)) == (least_summed_elements == kNever ? 0 : 4));
  runtime::Session session = must(training_session(model, runtime::make_cpu_device(), options));
  std::vector<runtime::StepMetrics> metrics;
  for (int64_t step = 0; step < 4; ++step) {
    must(session.train_step());
    metrics.push_back(must(session.read_metrics(step)));
  }
  return metrics;
}

}  // namespace

TEST_CASE("the norm is the same whether gradients are read again or their squares were summed") {
  for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16}) {
    const fb::ModelT model = small_model(1, dtype);
    const auto read = train(model, kNever), summed = train(model, 1);
    for (size_t step = 0; step < read.size(); ++step) {
      CHECK(summed[step].grad_norm == doctest::Approx(read[step].grad_norm).epsilon(1e-6));
      CHECK(summed[step].loss == doctest::Approx(read[step].loss).epsilon(1e-5));
    }
  }
}

TEST_CASE("squares are summed of large final gradients alone") {
  CHECK(sums_of_squares(compile(small_model(1, fb::DType::F32))) == 0);
  CHECK(sums_of_squares(compile(small_model(2, fb::DType::F32), {.least_summed_elements = 1})) == 0);
  CHECK(sums_of_squares(compile(example_model("moe-6.9b"))) == 60);
}

}  // namespace moec::test
