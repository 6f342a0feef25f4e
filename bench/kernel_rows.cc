#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "bench/live_model.h"
#include "bench/measure.h"
#include "bench/rows.h"
#include "bench/single_kernel.h"
#include "kernels/catalog.h"

namespace moec::bench {
namespace {

using fb::ProgramKind;

/// "f32[8,128,64]".
std::string describe(const fb::TensorT& tensor) {
  std::string type = fb::EnumNameDType(tensor.dtype);
  for (char& c : type) c = static_cast<char>(std::tolower(c));
  return fmt::format("{}[{}]", type, fmt::join(tensor.shape, ","));
}

/// The first operand that is there.
const fb::TensorT* first_of(const runtime::LoadedPlan& plan, const std::vector<int>& ids) {
  const auto found = std::find_if(ids.begin(), ids.end(), [](int id) { return id >= 0; });
  return found == ids.end() ? nullptr : plan.tensor(*found);
}

/// First input, first output where it looks otherwise, and the optional inputs:
/// "f32[8,128,64]->f32[8,128,96]+bias".
std::string describe(const runtime::LoadedPlan& plan, const fb::InstructionT& instruction) {
  const fb::TensorT* input = first_of(plan, instruction.inputs);
  const fb::TensorT* output = first_of(plan, instruction.outputs);
  std::string text = input == nullptr ? "" : describe(*input);
  const std::string result = describe(*output);
  if (result != text) text += "->" + result;
  const std::vector<Operand>& operands = find_kernel(instruction.kernel)->inputs;
  for (size_t i = 0; i < operands.size(); ++i)
    if (operands[i].optional && instruction.inputs[i] >= 0) text += "+" + operands[i].name;
  return text;
}

/// Before the measurement: code is loaded, then submission as a whole is prepared.
constexpr int kWarmUpRuns = 2;

struct Row {
  std::string name;
  std::shared_ptr<const runtime::LoadedPlan> plan;
  ProgramKind program = ProgramKind::Accumulate;
  size_t index = 0;  // of the instruction in its program

  const fb::InstructionT& instruction() const { return *plan->program(program)->instructions[index]; }
  Work work() const {
    return {.flops = static_cast<double>(instruction().flops),
            .bytes = static_cast<double>(instruction().bytes)};
  }
};

std::vector<Row> rows_of(const Model& model) {
  std::vector<Row> rows;
  std::set<std::string> seen;
  for (const ProgramKind kind : {ProgramKind::Accumulate, ProgramKind::Apply, ProgramKind::Evaluate}) {
    const fb::ProgramT* program = model.plan->program(kind);
    for (size_t i = 0; program != nullptr && i < program->instructions.size(); ++i) {
      const fb::InstructionT& instruction = *program->instructions[i];
      std::string name =
          fmt::format("kernel/{}/{}/{}", instruction.kernel, model.name, describe(*model.plan, instruction));
      if (seen.insert(name).second) rows.push_back({std::move(name), model.plan, kind, i});
    }
  }
  return rows;
}

/// Keeps what the last row needed: Google Benchmark calls a row several times, and the next one is likely to
/// be of the same model. Models of earlier rows are dropped, so that at most one is in memory.
class Stage {
 public:
  explicit Stage(const Lane& lane) : lane_(lane) {}

  Status run(benchmark::State& state, const Row& row) {
    lane_.enter();
    if (row.name != row_) MOEC_RETURN_IF_ERROR(prepare(row));
    return measure(
               state, lane_, row.work(), [this] { return kernel_->run(); }, kernel_->runs())
        .status();
  }

 private:
  Status prepare(const Row& row) {
    row_.clear();
    kernel_.reset();
    if (!model_ || &model_->plan() != row.plan.get()) {
      model_.reset();
      MOEC_ASSIGN_OR_RETURN(model_, LiveModel::create(row.plan, lane_));
    }
    MOEC_ASSIGN_OR_RETURN(const std::vector<Contents> inputs, model_->capture(row.program, row.index));
    MOEC_ASSIGN_OR_RETURN(kernel_,
                          SingleKernel::create(row.plan->plan, row.instruction(), row.work(), lane_));
    for (const Contents& input : inputs) MOEC_RETURN_IF_ERROR(kernel_->write(input.tensor, input.bytes));
    for (int i = 0; i < kWarmUpRuns; ++i) MOEC_RETURN_IF_ERROR(kernel_->run().status());
    row_ = row.name;
    return {};
  }

  Lane lane_;
  std::optional<LiveModel> model_;
  std::optional<SingleKernel> kernel_;
  std::string row_;  // the one that kernel_ is for
};

}  // namespace

void add_kernel_rows(Rows& rows, std::span<const Model> models, const Lane& lane) {
  const auto stage = std::make_shared<Stage>(lane);
  for (const Model& model : models)
    for (const Row& row : rows_of(model))
      rows.add(row.name, benchmark::kMicrosecond,
               [row, stage](benchmark::State& state) { return stage->run(state, row); });
}

}  // namespace moec::bench
