// The training loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/dataset.h"
#include "runtime/generate.h"
#include "runtime/report.h"
#include "runtime/session.h"
#include "runtime/status.h"

namespace moec::runtime {

struct TrainOptions {
  int64_t max_steps = 1000;  // of the whole run, those before a resume included
  int64_t log_every = 1;
  int64_t eval_every = 0;    // 0: only at the end
  int64_t eval_batches = 0;  // 0: one pass over the validation data
  int64_t save_every = 0;    // 0: only at the end
  int64_t sample_every = 0;  // 0: only at the end; without a prompt never
  std::string sample_prompt;
  GenerateOptions sample;
  /// Where checkpoints and the log go; empty keeps nothing.
  std::string out_dir;
  /// Continue the checkpoint in out_dir. Without it, a directory that holds one is an input error.
  bool resume = false;
  std::optional<uint64_t> seed;  // unset: the recipe's; not used on resume
  std::optional<double> lr;      // unset: the recipe's, on resume the run's
  /// FLOP/s that the device can reach at most, for MFU.
  std::optional<double> peak_flops;
  /// Saved with the run, e.g. the data files and flags.
  nlohmann::json run_options = nlohmann::json::object();
  /// When it becomes true, the run ends after the step under way, with a checkpoint.
  const std::atomic<bool>* stop = nullptr;
};

/// What happens while training; unset callbacks are not called.
struct TrainObserver {
  std::function<void(const StepReport&)> on_step;
  std::function<void(int64_t step, double validation_loss)> on_evaluation;
  std::function<void(int64_t step, std::string_view text)> on_sample;
  std::function<void(int64_t step)> on_checkpoint;
};

struct TrainResult {
  int64_t step = 0;
  bool stopped = false;                   // by options.stop, before max_steps
  std::optional<double> train_loss;       // of the last step
  std::optional<double> validation_loss;  // at the end
};

/// Trains until max_steps: initialises the session (or continues the checkpoint), then steps, with a log row,
/// an evaluation, a checkpoint and a sample whenever they are due and at the end. The log of a continued run
/// loses the lines after the checkpoint.
Result<TrainResult> train(Session& session, Dataset data, const TrainOptions& options,
                          const TrainObserver& observer = {});

}  // namespace moec::runtime
