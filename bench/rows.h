// The rows of moebench by kind.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "runtime/plan.h"
#include "runtime/status.h"
#include "runtime/tuning/lane.h"

namespace moec::bench {

using tuning::Lane;

/// Rows given to Google Benchmark; outlives its run.
class Rows {
 public:
  /// A row that times itself (bench/measure.h); an error is shown in its place.
  void add(const std::string& name, benchmark::TimeUnit unit, std::function<Status(benchmark::State&)> run);

  /// Rows that ended with an error, counted while they run.
  int failed() const { return failed_; }

 private:
  int failed_ = 0;
};

/// The row of an instruction, and of all of the same shapes: "kernel/rmsnorm/moe-tiny/f32[8,128,64]".
std::string kernel_row(const runtime::LoadedPlan& plan, const fb::InstructionT& instruction);

/// A model of schema/examples, compiled.
struct Model {
  std::string name;
  std::shared_ptr<const runtime::LoadedPlan> plan;
};

/// "table/softmax/512x32000": four f32 kernels at sizes that other systems publish.
void add_table_rows(Rows& rows, const Lane& lane);

/// kernel_row(): every kernel of a model's accumulate, apply and evaluate programs
/// once for all instructions of the same shapes, on operands from the middle of a training run. Of a kernel
/// with variants also a row for each of them: "variant/attention/cudnn/moe-6.9b/bf16[2,4096,896]".
void add_kernel_rows(Rows& rows, std::span<const Model> models, const Lane& lane);

/// "step/moe-tiny": an optimizer step from call to completion, on random tokens.
void add_step_row(Rows& rows, const Model& model, const Lane& lane);

}  // namespace moec::bench
