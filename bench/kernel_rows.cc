#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "bench/measure.h"
#include "bench/rows.h"
#include "kernels/catalog.h"
#include "runtime/tuning/live_model.h"
#include "runtime/tuning/single_kernel.h"

namespace moec::bench {
namespace {

using tuning::Contents;
using tuning::LiveModel;
using tuning::SingleKernel;

using fb::ProgramKind;

/// Before the measurement: code is loaded, then submission as a whole is prepared.
constexpr int kWarmUpRuns = 2;

struct Row {
  std::string name;
  std::shared_ptr<const runtime::LoadedPlan> plan;
  ProgramKind program = ProgramKind::Accumulate;
  size_t index = 0;     // of the instruction in its program
  std::string variant;  // empty where the device chooses

  const fb::InstructionT& instruction() const { return *plan->program(program)->instructions[index]; }
  Work work() const {
    return {.flops = static_cast<double>(instruction().flops),
            .bytes = static_cast<double>(instruction().bytes)};
  }
};

/// "variant/attention/cudnn/moe-6.9b/bf16[2,4096,896]".
std::string variant_row(const runtime::LoadedPlan& plan, const fb::InstructionT& instruction,
                        std::string_view variant) {
  return fmt::format("variant/{}/{}/{}/{}", instruction.kernel, variant, plan.plan.model->name,
                     runtime::call_shapes(plan.plan, instruction));
}

std::vector<Row> rows_of(const Model& model, bool with_variants) {
  std::vector<Row> rows;
  std::set<std::string> seen;
  for (const ProgramKind kind : {ProgramKind::Accumulate, ProgramKind::Apply, ProgramKind::Evaluate}) {
    const fb::ProgramT* program = model.plan->program(kind);
    for (size_t i = 0; program != nullptr && i < program->instructions.size(); ++i) {
      const fb::InstructionT& instruction = *program->instructions[i];
      std::string name = kernel_row(*model.plan, instruction);
      if (!seen.insert(name).second) continue;
      rows.push_back({std::move(name), model.plan, kind, i, ""});
      if (!with_variants) continue;
      for (const std::string& variant : find_kernel(instruction.kernel)->variants)
        rows.push_back({variant_row(*model.plan, instruction, variant), model.plan, kind, i, variant});
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
    if (!kernel_) {
      state.SkipWithError("does not compute this call");
      return {};
    }
    return measure(
               state, lane_, row.work(), [this] { return kernel_->run(); }, kernel_->runs())
        .status();
  }

 private:
  /// Leaves no kernel where the variant does not compute the call.
  Status prepare(const Row& row) {
    row_.clear();
    kernel_.reset();
    if (!model_ || &model_->plan() != row.plan.get()) {
      model_.reset();
      MOEC_ASSIGN_OR_RETURN(model_, LiveModel::create(row.plan, lane_));
    }
    MOEC_ASSIGN_OR_RETURN(const bool computed, computes(row));
    if (!computed) {
      row_ = row.name;
      return {};
    }
    MOEC_ASSIGN_OR_RETURN(const std::vector<Contents> inputs, model_->capture(row.program, row.index));
    const std::string device(model_->device().model());
    MOEC_ASSIGN_OR_RETURN(kernel_, SingleKernel::create(row.plan->plan, row.instruction(), row.work(), lane_,
                                                        {row.variant, device}));
    for (const Contents& input : inputs) MOEC_RETURN_IF_ERROR(kernel_->write(input.tensor, input.bytes));
    for (int i = 0; i < kWarmUpRuns; ++i) MOEC_RETURN_IF_ERROR(kernel_->run().status());
    row_ = row.name;
    return {};
  }

  Result<bool> computes(const Row& row) const {
    if (row.variant.empty()) return true;
    MOEC_ASSIGN_OR_RETURN(const auto variants, model_->device().variants(row.program, row.index));
    return std::ranges::find(variants, row.variant) != variants.end();
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
    for (const Row& row : rows_of(model, lane.has_variants()))
      rows.add(row.name, benchmark::kMicrosecond,
               [row, stage](benchmark::State& state) { return stage->run(state, row); });
}

}  // namespace moec::bench
