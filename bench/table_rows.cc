#include <fmt/format.h>

#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "bench/measure.h"
#include "bench/rows.h"
#include "runtime/tuning/single_kernel.h"

namespace moec::bench {
namespace {

using tuning::SingleKernel;

/// A kernel of f32 operands without workspace. Tensor ids: inputs, then outputs.
struct Problem {
  std::string name;
  std::string kernel;
  fb::OpUnion op;
  std::vector<std::vector<uint64_t>> inputs;
  std::vector<std::vector<uint64_t>> outputs;
  int absent_inputs = 0;  // optional ones, at the end
  double flops = 0;
};

template <class Attrs>
fb::OpUnion op(Attrs attrs) {
  fb::OpUnion result;
  result.Set(std::move(attrs));
  return result;
}

/// Operations of an element are counted as the compiler counts them.
std::vector<Problem> problems() {
  fb::LinearT matmul;
  matmul.out_features = 512;
  return {
      {"matmul/512x512",
       "linear",
       op(matmul),
       {{512, 512}, {512, 512}},
       {{512, 512}},
       1,
       2.0 * 512 * 512 * 512},
      {"softmax/512x32000",
       "softmax",
       op(fb::SoftmaxT()),
       {{512, 32000}},
       {{512, 32000}},
       0,
       4.0 * 512 * 32000},
      {"silu/65536", "silu", op(fb::SiluT()), {{65536}}, {{65536}}, 0, 4.0 * 65536},
      {"rmsnorm/512x768",
       "rmsnorm",
       op(fb::RmsNormT()),
       {{512, 768}, {768}},
       {{512, 768}, {512}},
       0,
       4.0 * 512 * 768},
  };
}

/// Before the measurement: code is loaded, then submission as a whole is prepared.
constexpr int kWarmUpRuns = 2;

struct Prepared {
  SingleKernel kernel;
  Work work;
};

int add_tensor(fb::PlanT& plan, const std::vector<uint64_t>& shape) {
  auto tensor = std::make_unique<fb::TensorT>();
  tensor->dtype = fb::DType::F32;
  tensor->shape = shape;
  plan.tensors.push_back(std::move(tensor));
  return static_cast<int>(plan.tensors.size() - 1);
}

size_t elements_of(const fb::TensorT& tensor) {
  size_t elements = 1;
  for (const uint64_t extent : tensor.shape) elements *= extent;
  return elements;
}

/// Inputs are from N(0, 1).
Result<Prepared> prepare(const Problem& problem, const Lane& lane) {
  fb::PlanT plan;
  fb::InstructionT instruction;
  instruction.kernel = problem.kernel;
  instruction.op = problem.op;
  for (const auto& shape : problem.inputs) instruction.inputs.push_back(add_tensor(plan, shape));
  for (const auto& shape : problem.outputs) instruction.outputs.push_back(add_tensor(plan, shape));
  Work work = {.flops = problem.flops};
  for (const auto& tensor : plan.tensors)
    work.bytes += static_cast<double>(elements_of(*tensor) * sizeof(float));

  const std::vector<int> written = instruction.inputs;
  instruction.inputs.resize(written.size() + static_cast<size_t>(problem.absent_inputs), -1);
  MOEC_ASSIGN_OR_RETURN(SingleKernel kernel, SingleKernel::create(plan, instruction, work, lane));
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (const int id : written) {
    std::vector<float> values(elements_of(*plan.tensors[static_cast<size_t>(id)]));
    for (float& value : values) value = normal(generator);
    MOEC_RETURN_IF_ERROR(kernel.write(id, std::as_bytes(std::span(values))));
  }
  return Prepared{std::move(kernel), work};
}

Status run_row(benchmark::State& state, const Problem& problem, const Lane& lane) {
  lane.enter();
  MOEC_ASSIGN_OR_RETURN(Prepared prepared, prepare(problem, lane));
  for (int i = 0; i < kWarmUpRuns; ++i) MOEC_RETURN_IF_ERROR(prepared.kernel.run().status());
  return measure(
             state, lane, prepared.work, [&] { return prepared.kernel.run(); }, prepared.kernel.runs())
      .status();
}

}  // namespace

void add_table_rows(Rows& rows, const Lane& lane) {
  for (const Problem& problem : problems())
    rows.add(fmt::format("table/{}", problem.name), benchmark::kMicrosecond,
             [problem, lane](benchmark::State& state) { return run_row(state, problem, lane); });
}

}  // namespace moec::bench
