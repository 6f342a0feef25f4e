#include "runtime/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "runtime/file_io.h"
#include "runtime/guard.h"
#include "runtime/pace.h"
#include "runtime/run_dir.h"
#include "runtime/trace_file.h"

namespace moec::runtime {
namespace {

using nlohmann::json;

Status check_options(const TrainOptions& options) {
  const std::pair<const char*, int64_t> counts[] = {
      {"max_steps", options.max_steps},   {"log_every", options.log_every - 1},
      {"eval_every", options.eval_every}, {"eval_batches", options.eval_batches},
      {"save_every", options.save_every}, {"sample_every", options.sample_every}};
  for (const auto& [name, value] : counts)
    if (value < 0) return input_error(fmt::format("{} is too small", name));
  if (options.resume && options.out_dir.empty()) return input_error("there is no directory to resume from");
  return {};
}

/// The step at which a run goes on.
Result<int64_t> check_resumed(const LoadedPlan& plan, const TrainOptions& options) {
  const std::string& dir = options.out_dir;
  MOEC_ASSIGN_OR_RETURN(const RunConfig config, read_run_config(dir));
  MOEC_ASSIGN_OR_RETURN(const auto started_with, load_run_plan(dir));
  if (started_with->bytes != plan.bytes)
    return input_error(fmt::format("{}: the run was started with another plan than {}: continue with {}", dir,
                                   plan.source, started_with->source));
  if (config.step > options.max_steps)
    return input_error(
        fmt::format("{}: the run is at step {} already, beyond {}", dir, config.step, options.max_steps));
  MOEC_RETURN_IF_ERROR(check_checkpoint_files(dir, config));
  return config.step;
}

constexpr const char* kLoss = "loss";
constexpr const char* kValidationLoss = "validation_loss";
constexpr const char* kSample = "sample";

/// Whether a run writes such rows.
bool is_sound(const json& row) {
  const auto is = [&](const char* key, bool (*accepts)(const json&)) {
    const auto value = row.find(key);
    return value == row.end() || accepts(*value);
  };
  const auto is_step = [](const json& value) {
    return value.is_number_integer() && value.get<int64_t>() > 0;
  };
  const auto is_loss = [](const json& value) { return value.is_number() || value.is_null(); };  // null: NaN
  const auto is_text = [](const json& value) { return value.is_string(); };
  return row.is_object() && row.contains("step") && is("step", is_step) && is(kLoss, is_loss) &&
         is(kValidationLoss, is_loss) && is(kSample, is_text);
}

/// What a log holds of steps up to a last one.
struct LogPart {
  std::string lines;
  int64_t damaged = 0;                      // lines that no run writes: torn ones, say, or a step again
  bool later = false;                       // whether there are steps behind the last one
  bool evaluation = false, sample = false;  // of the last step
};

Result<LogPart> log_until(const std::string& path, int64_t last) {
  return guarded("reading " + path, [&]() -> Result<LogPart> {
    MOEC_ASSIGN_OR_RETURN(const std::string text, read_file(path));
    std::istringstream lines(text);
    LogPart part;
    std::set<std::pair<int64_t, std::string_view>> seen;
    const auto repeats = [&](const json& row, int64_t step) {
      return std::ranges::any_of(std::array{kLoss, kValidationLoss, kSample}, [&](const char* kind) {
        return row.contains(kind) && !seen.emplace(step, kind).second;
      });
    };
    for (std::string line; std::getline(lines, line);) {
      const json row = json::parse(line, nullptr, false);
      const int64_t step = is_sound(row) ? row.at("step").get<int64_t>() : 0;
      if (step == 0 || repeats(row, step)) {
        ++part.damaged;
        continue;
      }
      part.later |= step > last;
      if (step > last) continue;
      part.lines += line + '\n';
      if (step < last) continue;
      part.evaluation |= row.contains(kValidationLoss);
      part.sample |= row.contains(kSample);
    }
    return part;
  });
}

Status check_new(const std::string& dir) {
  if (dir.empty()) return {};
  if (has_checkpoint(dir))
    return input_error(fmt::format("{}: holds a run already: resume it, or choose another directory", dir));
  if (has_unnamed_checkpoint(dir))
    return input_error(
        fmt::format("{}: holds a checkpoint without its config.json: remove its model-*.safetensors and "
                    "optimizer-*.safetensors to start anew, or choose another directory",
                    dir));
  return {};
}

Status check_trace(const Device& device, int64_t steps, const std::string& file) {
  const int64_t needed = StepTracer::steps_needed(device);
  if (steps < needed) return input_error(fmt::format("a trace needs a run of at least {} steps", needed));
  return AtomicFile::create(file).status();  // whether it can be written
}

class Trainer {
 public:
  Trainer(Session& session, TokenizerPtr tokenizer, bool has_validation, const TrainOptions& options,
          const TrainObserver& observer)
      : session_(session),
        tokenizer_(std::move(tokenizer)),
        has_validation_(has_validation),
        options_(options),
        observer_(observer) {}

  Result<TrainResult> run() {
    MOEC_RETURN_IF_ERROR(start());
    if (observer_.on_start) observer_.on_start();
    if (options_.resume) MOEC_RETURN_IF_ERROR(do_what_was_left());
    MOEC_RETURN_IF_ERROR(session_.start_timer());
    while (!at_end()) {
      if (tracer_) MOEC_RETURN_IF_ERROR(trace());
      MOEC_RETURN_IF_ERROR(session_.train_step());
      result_.validation_loss.reset();
      ++unread_;
      if (read_is_due()) {
        MOEC_RETURN_IF_ERROR(read_metrics());
        MOEC_RETURN_IF_ERROR(take_in(pace_.most_in_flight()));
      }
      if (session_.step() < options_.max_steps) MOEC_RETURN_IF_ERROR(do_what_is_due());
    }
    MOEC_RETURN_IF_ERROR(take_in_all());
    if (row_.steps > 0) MOEC_RETURN_IF_ERROR(log_row());
    if (tracer_) MOEC_RETURN_IF_ERROR(tracer_->finish());
    result_.step = session_.step();
    result_.stopped = result_.stopped || result_.step < options_.max_steps;
    if (!result_.stopped && session_.step() != saved_step_) {
      MOEC_RETURN_IF_ERROR(evaluate());
      MOEC_RETURN_IF_ERROR(sample());
    }
    MOEC_RETURN_IF_ERROR(save());
    MOEC_RETURN_IF_ERROR(write_trace());
    return result_;
  }

 private:
  /// Steps taken in since the last row.
  struct Row {
    int64_t steps = 0;
    double seconds = 0;
    StepMetrics metrics;   // of the newest
    bool skipped = false;  // the newest
  };

  bool stop_asked() const { return options_.stop != nullptr && options_.stop->load(); }
  bool at_end() const { return session_.step() >= options_.max_steps || stop_asked(); }
  bool due(int64_t every) const { return every > 0 && session_.step() % every == 0; }

  Status start() {
    const fb::RecipeT& recipe = *session_.plan().plan.recipe;
    const std::string& dir = options_.out_dir;
    if (options_.resume) {
      MOEC_ASSIGN_OR_RETURN(const RunConfig config, read_run_config(dir));
      MOEC_RETURN_IF_ERROR(load_checkpoint(dir, config, session_));
      if (options_.lr) MOEC_RETURN_IF_ERROR(session_.set_learning_rate(*options_.lr));
      saved_step_ = config.step;
    } else {
      MOEC_RETURN_IF_ERROR(
          session_.initialise(options_.seed.value_or(recipe.seed), options_.lr.value_or(recipe.lr)));
    }
    MOEC_ASSIGN_OR_RETURN(const TrainState state, session_.read_train_state());
    skipped_steps_ = state.skipped_steps;
    sampling_ = options_.sample;
    sampling_.sampler.seed = state.seed;
    if (!options_.trace_file.empty()) tracer_.emplace(session_);
    if (dir.empty()) return {};
    MOEC_RETURN_IF_ERROR(make_directories(dir));
    return open_log(log_path(dir));
  }

  void warn(const std::string& text) {
    if (observer_.on_warning) observer_.on_warning(text);
  }

  /// Keeps what the log tells of the steps that the run has.
  Status open_log(const std::string& path) {
    if (file_exists(path)) {
      MOEC_ASSIGN_OR_RETURN(logged_, log_until(path, session_.step()));
      MOEC_RETURN_IF_ERROR(write_file(path, logged_.lines));
      if (logged_.damaged > 0)
        warn(fmt::format("{}: dropped {} damaged row{}", path, logged_.damaged,
                         logged_.damaged == 1 ? "" : "s"));
      if (logged_.later && !options_.resume)
        warn(fmt::format("{}: replaced the log of a run that left no checkpoint", path));
    }
    MOEC_ASSIGN_OR_RETURN(LineFile log, LineFile::append_to(path));
    log_.emplace(std::move(log));
    return {};
  }

  /// What was due at the step of the checkpoint, and did not come about because the run was stopped.
  Status do_what_was_left() {
    const bool at_last = session_.step() == options_.max_steps;
    if (session_.step() == 0) return {};
    if (!logged_.evaluation && (at_last || due(options_.eval_every))) MOEC_RETURN_IF_ERROR(evaluate());
    if (!logged_.sample && (at_last || due(options_.sample_every))) MOEC_RETURN_IF_ERROR(sample());
    return {};
  }

  Status do_what_is_due() {
    const bool evaluating = due(options_.eval_every), sampling = due(options_.sample_every);
    const bool saving = due(options_.save_every);
    if (!evaluating && !sampling && !saving) return {};
    MOEC_RETURN_IF_ERROR(take_in_all());
    if (evaluating) MOEC_RETURN_IF_ERROR(evaluate());
    if (sampling) MOEC_RETURN_IF_ERROR(sample());
    if (saving) MOEC_RETURN_IF_ERROR(save());
    return session_.start_timer();
  }

  /// Text of a sample need not be UTF-8, which JSON must be.
  Status log_line(const json& line) {
    return log_ ? log_->write_line(line.dump(-1, ' ', false, json::error_handler_t::replace)) : Status();
  }

  /// One read brings the metrics of a few short steps: it costs the host as much as half of a replay. A row
  /// of the log ends with a read, for its time; no read spans the end of the ring.
  bool read_is_due() const {
    return unread_ >= pace_.steps_a_read() || due(options_.log_every) || due(kMetricsRows);
  }

  Status read_metrics() {
    MOEC_ASSIGN_OR_RETURN(LateMetrics late, session_.read_metrics_later(std::exchange(unread_, 0)));
    in_flight_.push_back(std::move(late));
    return {};
  }

  int64_t steps_in_flight() const { return session_.step() - in_flight_.front().first_step(); }

  /// Takes in the metrics of steps that are done, in order, and waits for the oldest while more than `most`
  /// are in flight. Sleeps instead of waiting in CUDA, which would keep a core busy.
  Status take_in(int64_t most) {
    while (!in_flight_.empty()) {
      MOEC_ASSIGN_OR_RETURN(const bool ready, in_flight_.front().ready());
      if (ready) {
        MOEC_RETURN_IF_ERROR(take_in(in_flight_.front()));
        in_flight_.pop_front();
      } else if (steps_in_flight() > most) {
        std::this_thread::sleep_for(std::chrono::duration<double>(pace_.sleep_seconds(steps_in_flight())));
      } else {
        return {};
      }
    }
    return {};
  }

  Status take_in_all() {
    if (unread_ > 0) MOEC_RETURN_IF_ERROR(read_metrics());
    return take_in(0);
  }

  Status take_in(LateMetrics& late) {
    MOEC_ASSIGN_OR_RETURN(const double seconds, late.seconds());
    for (int64_t i = 0; i < late.steps(); ++i) {
      MOEC_ASSIGN_OR_RETURN(row_.metrics, late.metrics(i));
      pace_.step_took(seconds / static_cast<double>(late.steps()));
      row_.seconds += seconds / static_cast<double>(late.steps());
      ++row_.steps;
      row_.skipped = row_.metrics.skipped_steps > skipped_steps_;
      skipped_steps_ = row_.metrics.skipped_steps;
      const bool due = (row_.metrics.step + 1) % options_.log_every == 0;
      if (due || row_.skipped) MOEC_RETURN_IF_ERROR(log_row());
    }
    return {};
  }

  /// Of the steps taken in since the last row.
  Status log_row() {
    const Row row = std::exchange(row_, {});
    const double seconds = row.seconds / static_cast<double>(row.steps);
    StepReport report{.step = row.metrics.step + 1,
                      .skipped = row.skipped,
                      .max_steps = options_.max_steps,
                      .metrics = row.metrics,
                      .milliseconds = seconds * 1e3,
                      .tokens_per_second = tokens_per_step() / seconds,
                      .mfu = std::nullopt};
    if (options_.ceilings.flops > 0) report.mfu = flops_per_step() / seconds / options_.ceilings.flops;
    result_.train_loss = row.metrics.loss;
    if (observer_.on_step) observer_.on_step(report);
    return log_line(to_json(report));
  }

  Status trace() {
    if (tracer_->turns()) MOEC_RETURN_IF_ERROR(take_in_all());
    return tracer_->before_step();
  }

  Status write_trace() {
    if (!tracer_) return {};
    if (observer_.on_trace) observer_.on_trace(tracer_->trace());
    return write_trace_file(options_.trace_file, session_.plan().plan, tracer_->trace(), options_.ceilings);
  }

  double tokens_per_step() const {
    return static_cast<double>(session_.batch_size() * session_.seq_len() * session_.grad_accum());
  }

  double flops_per_step() const {
    const auto flops = [&](fb::ProgramKind kind) {
      const fb::ProgramT* program = session_.plan().program(kind);
      return program == nullptr ? 0.0 : static_cast<double>(cost_of(*program).flops);
    };
    return static_cast<double>(session_.grad_accum()) * flops(fb::ProgramKind::Accumulate) +
           flops(fb::ProgramKind::Apply);
  }

  /// Left, as a sample is, where a stop is asked for before it is done.
  Status evaluate() {
    if (!has_validation_) return {};
    MOEC_ASSIGN_OR_RETURN(const std::optional<double> loss,
                          session_.evaluate(options_.eval_batches, [this] { return stop_asked(); }));
    if (!loss) {
      result_.stopped = true;
      return {};
    }
    result_.validation_loss = *loss;
    if (observer_.on_evaluation) observer_.on_evaluation(session_.step(), *loss);
    return log_line({{"step", session_.step()}, {kValidationLoss, *loss}});
  }

  Status sample() {
    if (options_.sample_prompt.empty()) return {};
    std::string text = options_.sample_prompt;
    const auto keep = [&](int32_t, std::string_view piece) {
      text += piece;
      return !stop_asked();
    };
    if (!stop_asked())
      MOEC_RETURN_IF_ERROR(generate(session_, *tokenizer_, options_.sample_prompt, sampling_, keep));
    if (stop_asked()) {
      result_.stopped = true;
      return {};
    }
    if (observer_.on_sample) observer_.on_sample(session_.step(), text);
    return log_line({{"step", session_.step()}, {kSample, text}});
  }

  Status save() {
    if (options_.out_dir.empty() || saved_step_ == session_.step()) return {};
    MOEC_RETURN_IF_ERROR(save_run(options_.out_dir, session_, *tokenizer_, options_.run_options));
    saved_step_ = session_.step();
    if (observer_.on_checkpoint) observer_.on_checkpoint(saved_step_);
    return {};
  }

  Session& session_;
  TokenizerPtr tokenizer_;
  bool has_validation_;
  const TrainOptions& options_;
  GenerateOptions sampling_;  // with the seed of the run
  const TrainObserver& observer_;
  TrainResult result_;
  LogPart logged_;  // of the run that is continued
  std::optional<LineFile> log_;
  std::optional<StepTracer> tracer_;
  int64_t unread_ = 0;                 // steps submitted whose metrics are not on their way yet
  std::deque<LateMetrics> in_flight_;  // of the steps before them that are not taken in, oldest first
  Pace pace_{Device::kMostLateReads - 1, Session::kMostLateSteps};
  Row row_;
  int64_t skipped_steps_ = 0;  // by the steps taken in
  int64_t saved_step_ = -1;    // of the newest checkpoint
};

}  // namespace

Status check_start(const LoadedPlan& plan, const Device& device, const TrainOptions& options) {
  return guarded("checking the start", [&]() -> Status {
    MOEC_RETURN_IF_ERROR(check_options(options));
    int64_t step = 0;
    if (options.resume) {
      MOEC_ASSIGN_OR_RETURN(step, check_resumed(plan, options));
    } else {
      MOEC_RETURN_IF_ERROR(check_new(options.out_dir));
    }
    return options.trace_file.empty() ? Status()
                                      : check_trace(device, options.max_steps - step, options.trace_file);
  });
}

Result<TrainResult> train(Session& session, Dataset data, const TrainOptions& options,
                          const TrainObserver& observer) {
  return guarded("training", [&]() -> Result<TrainResult> {
    MOEC_RETURN_IF_ERROR(check_start(session.plan(), session.device(), options));
    const bool has_validation =
        !data.validation.empty() && session.plan().program(fb::ProgramKind::Evaluate) != nullptr;
    MOEC_RETURN_IF_ERROR(session.set_data(std::move(data.train), std::move(data.validation)));
    return Trainer(session, data.tokenizer, has_validation, options, observer).run();
  });
}

}  // namespace moec::runtime
