// The training loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/ceilings.h"
#include "runtime/dataset.h"
#include "runtime/device.h"
#include "runtime/generate.h"
#include "runtime/report.h"
#include "runtime/session.h"
#include "runtime/status.h"
#include "runtime/step_tracer.h"

namespace moec::runtime {

struct TrainOptions {
  int64_t max_steps = 1000;  // of the whole run, those before a resume included
  int64_t log_every = 1;
  int64_t eval_every = 0;    // 0: only at the end
  int64_t eval_batches = 0;  // 0: one pass over the validation data
  int64_t save_every = 0;    // 0: only at the end
  int64_t sample_every = 0;  // 0: only at the end; without a prompt never
  std::string sample_prompt;
  GenerateOptions sample;  // whose seed is the run's
  /// Where checkpoints and the log go; empty keeps nothing.
  std::string out_dir;
  /// Continue the checkpoint in out_dir. Without it, a directory that holds one is an input error.
  bool resume = false;
  std::optional<uint64_t> seed;  // unset: the recipe's; not used on resume
  std::optional<double> lr;      // unset: the recipe's, on resume the run's
  /// What the device can do at best, for MFU and the trace; 0 where it is not known.
  Ceilings ceilings;
  /// Where the trace of some steps goes (step_tracer.h); empty for none.
  std::string trace_file;
  /// Saved with the run, e.g. the data files and flags.
  nlohmann::json run_options = nlohmann::json::object();
  /// When it becomes true, the run ends after the step or the batch of an evaluation under way, with a
  /// checkpoint. What was due and did not come about is done when the run is continued.
  const std::atomic<bool>* stop = nullptr;
};

/// What happens while training; unset callbacks are not called.
struct TrainObserver {
  std::function<void(std::string_view text)> on_warning;  // the run goes on
  std::function<void()> on_start;  // data and checkpoint are in place, the first step comes next
  std::function<void(const StepReport&)> on_step;
  std::function<void(int64_t step, double validation_loss)> on_evaluation;
  std::function<void(int64_t step, std::string_view text)> on_sample;
  std::function<void(int64_t step)> on_checkpoint;
  std::function<void(const StepTrace&)> on_trace;
};

struct TrainResult {
  int64_t step = 0;
  bool stopped = false;                   // by options.stop, before max_steps or what is due there
  std::optional<double> train_loss;       // of the last step
  std::optional<double> validation_loss;  // likewise
};

/// Whether training this plan on this device, which need not have loaded it, can start as the options say; an
/// input error where it cannot. What only reading a whole checkpoint shows, train() finds.
Status check_start(const LoadedPlan& plan, const Device& device, const TrainOptions& options);

/// Trains until max_steps: initialises the session (or continues the checkpoint), then steps, with a log row,
/// an evaluation, a checkpoint and a sample whenever they are due and at the end. A step that was skipped has
/// a row always. Rows lag behind the steps, which are submitted ahead of the device; evaluation, checkpoint
/// and sample wait for it. The log of a continued run loses the lines after the checkpoint, and
/// damaged ones, with a warning; that of a run which left no checkpoint is replaced, with a warning.
Result<TrainResult> train(Session& session, Dataset data, const TrainOptions& options,
                          const TrainObserver& observer = {});

}  // namespace moec::runtime
