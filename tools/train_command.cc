#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "runtime/cuda/cuda_ceilings.h"
#include "runtime/run_dir.h"
#include "runtime/trainer.h"
#include "tools/commands.h"
#include "tools/machine.h"
#include "tools/plan_report.h"
#include "tools/recipe_flags.h"
#include "tools/terminal.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

using runtime::TextEncoding;

struct TrainFlags {
  std::string model;  // a plan or a spec
  runtime::DatasetOptions data;
  std::string encoding;
  std::optional<int64_t> max_steps;
  std::optional<double> peak_tflops;
  DeviceFlags device;
  runtime::TrainOptions options;
  RecipeFlags recipe;
};

/// Set by the signal handler, which can reach nothing but a global.
std::atomic<bool> stop_asked = false;
static_assert(std::atomic<bool>::is_always_lock_free);

void ask_to_stop(int signal) {
  stop_asked = true;
  if (signal == SIGPIPE) return;
  for (const int next : {SIGINT, SIGTERM}) std::signal(next, SIG_DFL);
  constexpr std::string_view kNotice =
      "\nstopping after the step under way; a second Ctrl-C or SIGTERM stops at once\n";
  const int before = errno;
  static_cast<void>(!::write(STDERR_FILENO, kNotice.data(), kNotice.size()));
  errno = before;
}

/// A second SIGINT or SIGTERM ends the process as usual, but not a second SIGHUP: where a terminal goes away,
/// both the shell and the system may send one.
void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
  struct sigaction hangup {};
  ::sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) ::sigaction(SIGHUP, &action, nullptr);  // which nohup asks for
  action.sa_flags = 0;
  ::sigaction(SIGPIPE, &action, nullptr);  // nobody reads the rows any more
}

Result<int64_t> choose_max_steps(const TrainFlags& flags, const fb::RecipeT& recipe) {
  if (flags.max_steps) return *flags.max_steps;
  if (recipe.schedule->total_steps > 0) return int64_t{recipe.schedule->total_steps};
  return input_error("--max-steps is missing, and the recipe's schedule has no total_steps");
}

/// Refuses a trace file that is one of the files that are read.
Status check_trace_file(const TrainFlags& flags) {
  std::vector<std::string> read = flags.data.files;
  read.insert(read.end(), flags.data.validation_files.begin(), flags.data.validation_files.end());
  read.push_back(flags.model);
  MOEC_RETURN_IF_ERROR(check_replaces_none("--trace", flags.options.trace_file, read));
  const std::filesystem::path trace = flags.options.trace_file, dir = trace.parent_path();
  std::error_code missing;
  if (!std::filesystem::equivalent(dir.empty() ? "." : dir, flags.options.out_dir, missing) ||
      !runtime::is_run_file(trace.filename().string()))
    return {};
  return input_error(fmt::format("--trace {}: would replace a file of the run", trace.string()));
}

/// Data for the plan; a run that is continued keeps its tokenizer.
Result<runtime::Dataset> load_data(const TrainFlags& flags, const fb::PlanT& plan) {
  runtime::DatasetOptions options = flags.data;
  if (!flags.encoding.empty())
    options.encoding = flags.encoding == "bytes" ? TextEncoding::kBytes : TextEncoding::kCharacters;
  options.vocab_size = plan.vocab_size;
  options.seq_len = plan.recipe->seq_len;
  if (flags.options.resume) {
    MOEC_ASSIGN_OR_RETURN(const runtime::RunConfig config, runtime::read_run_config(flags.options.out_dir));
    options.tokenizer = config.tokenizer;
  }
  return runtime::load_dataset(options);
}

constexpr char kDataChecksum[] = "data_checksum";  // of the tokens to train on

std::string checksum(const std::vector<int32_t>& tokens) {
  return fmt::format("{:016x}", XXH64(tokens.data(), tokens.size() * sizeof(int32_t), 0));
}

nlohmann::json run_options(const TrainFlags& flags, int64_t max_steps, const runtime::Dataset& data) {
  return {{"model", flags.model},
          {"data", flags.data.files},
          {kDataChecksum, checksum(data.train)},
          {"val_data", flags.data.validation_files},
          {"val_fraction", flags.data.validation_fraction},
          {"max_steps", max_steps}};
}

/// What the device of the flags can do at best, measured, or as the user says.
Result<runtime::Ceilings> find_ceilings(const TrainFlags& flags, fb::DType dtype) {
  runtime::Ceilings ceilings;
  const bool measure = !flags.peak_tflops || !flags.options.trace_file.empty();
  if (measure && picks_cuda(flags.device)) {
    MOEC_ASSIGN_OR_RETURN(ceilings, runtime::measure_cuda_ceilings());
  } else if (measure) {
    ceilings.flops = cpu_matmul_rate(dtype);
  }
  if (flags.peak_tflops) ceilings.flops = *flags.peak_tflops * 1e12;
  return ceilings;
}

/// "arenas: 1.20 GiB, context: 520 MiB".
Result<std::string> memory_text(runtime::Device& device) {
  MOEC_ASSIGN_OR_RETURN(const std::vector<runtime::MemoryUse> uses, device.memory_use());
  std::vector<std::string> parts;
  for (const runtime::MemoryUse& use : uses)
    if (use.bytes > 0) parts.push_back(fmt::format("{}: {}", use.what, bytes_text(use.bytes)));
  return fmt::format("{}", fmt::join(parts, ", "));
}

/// What is about to run, one line each.
Result<std::vector<std::string>> header(runtime::Session& session, const runtime::Dataset& data,
                                        const runtime::Ceilings& ceilings) {
  const fb::PlanT& plan = session.plan().plan;
  uint64_t memory = 0;
  for (const auto& arena : plan.arenas) memory += arena->size;
  MOEC_ASSIGN_OR_RETURN(const std::string taken, memory_text(session.device()));
  const std::string_view device = session.device().name();
  std::vector<std::string> lines = {
      fmt::format("model   {}: {} parameters, {} active", plan.model->name,
                  with_commas(plan.total_parameters), with_commas(plan.active_parameters)),
      fmt::format("step    {}", recipe_text(*plan.recipe)),
      fmt::format("data    {} tokens to train on, {} to validate", with_commas(data.train.size()),
                  with_commas(data.validation.size())),
      fmt::format("device  {}{}, matrix product at best: {}", device,
                  device == "cpu" ? fmt::format(", threads: {}", cpu::threads()) : "",
                  si_text(ceilings.flops, "FLOP/s"))};
  if (!plan.tuned_for.empty())
    lines.push_back(fmt::format("tuning  for {}{}", plan.tuned_for,
                                plan.tuned_for == session.device().model()
                                    ? ""
                                    : fmt::format(": not used on {}", session.device().model())));
  lines.push_back(fmt::format("memory  planned: {}; taken: {}", bytes_text(memory), taken));
  return lines;
}

/// Shows a run as it goes: on a terminal one row that is overwritten, of which some stay; elsewhere all rows.
class Progress {
 public:
  Progress(LiveOutput& out, std::vector<std::string> header)
      : out_(out), header_(std::move(header)), paint_(stdout) {}

  runtime::TrainObserver observer() {
    return {
        .on_warning =
            [](std::string_view text) { fmt::print(stderr, "moerun train: warning: {}\n", printable(text)); },
        .on_start =
            [this] {
              for (const std::string& line : header_) out_.line(line);
            },
        .on_step = [this](const runtime::StepReport& report) { show(report); },
        .on_evaluation =
            [this](int64_t step, double loss) {
              out_.line(paint_.bold(fmt::format("step {} | validation loss {:.4f}", step, loss)));
            },
        .on_sample =
            [this](int64_t step, std::string_view text) {
              out_.line(fmt::format("step {} | sample\n{}\n{}\n{}", step, paint_.dim(kRule), printable(text),
                                    paint_.dim(kRule)));
            },
        .on_checkpoint = nullptr,
        .on_trace = [this](const runtime::StepTrace& trace) { show(trace); }};
  }

 private:
  static constexpr const char* kRule = "----------------------------------------";
  static constexpr int64_t kRowsKept = 20;

  void show(const runtime::StepReport& report) {
    const std::string row = runtime::format_row(report);
    const int64_t twentieth = report.step * kRowsKept / report.max_steps;
    if (!out_.live() || twentieth > shown_twentieth_) {
      out_.line(row);
      shown_twentieth_ = twentieth;
    } else {
      const double left = static_cast<double>(report.max_steps - report.step) * report.milliseconds / 1e3;
      out_.status(fmt::format("{} left | {}", duration_text(left), row));
    }
  }

  void show(const runtime::StepTrace& trace) {
    out_.line(fmt::format("trace | instructions: {}", trace.instructions.method));
    if (!trace.figures) return;
    const runtime::ReplayFigures& figures = *trace.figures;
    out_.line(fmt::format(
        "trace | GPU idle between replays {:.2f} us | host waits a step {:.2f} | host CPU time a step {:.2f} "
        "us",
        1e6 * figures.idle_seconds, figures.host_waits, 1e6 * figures.host_cpu_seconds));
  }

  LiveOutput& out_;
  std::vector<std::string> header_;
  Paint paint_;
  int64_t shown_twentieth_ = -1;
};

std::string result_text(const runtime::TrainResult& result, double seconds, const std::string& out_dir) {
  std::string text = fmt::format("{} at step {} after {}", result.stopped ? "stopped" : "done", result.step,
                                 duration_text(seconds));
  if (result.train_loss) text += fmt::format(" | training loss {:.4f}", *result.train_loss);
  if (result.validation_loss) text += fmt::format(" | validation loss {:.4f}", *result.validation_loss);
  if (!out_dir.empty()) text += fmt::format(" | saved in {}", out_dir);
  return text;
}

/// Whether a run goes on with other data than it had.
Result<bool> data_changed(const TrainFlags& flags, const runtime::Dataset& data) {
  if (!flags.options.resume) return false;
  MOEC_ASSIGN_OR_RETURN(const runtime::RunConfig config, runtime::read_run_config(flags.options.out_dir));
  const std::string kept = config.options.value(kDataChecksum, "");
  return !kept.empty() && kept != checksum(data.train);
}

/// What a run keeps from its start cannot be given again when it is continued.
Status check_resume(const TrainFlags& flags) {
  if (flags.options.out_dir.empty()) return input_error("--out-dir: needs a directory");
  if (!flags.options.resume) return {};
  const std::string& dir = flags.options.out_dir;
  if (!runtime::has_checkpoint(dir)) {
    if (runtime::file_exists(dir)) MOEC_RETURN_IF_ERROR(runtime::lock_run(dir).status());  // one may come yet
    return input_error(dir + ": holds no checkpoint to resume from");
  }
  const char* kept = flags.recipe.seed() ? "--seed" : flags.encoding.empty() ? nullptr : "--encoding";
  if (kept == nullptr) return {};
  return input_error(fmt::format("{} cannot change on --resume: the run keeps its own", kept));
}

Status train(const TrainFlags& flags) {
  MOEC_RETURN_IF_ERROR(check_resume(flags));
  MOEC_ASSIGN_OR_RETURN(const auto plan, open_plan_or_spec(flags.model, flags.recipe));
  runtime::TrainOptions options = flags.options;
  MOEC_ASSIGN_OR_RETURN(options.max_steps, choose_max_steps(flags, *plan->plan.recipe));
  MOEC_ASSIGN_OR_RETURN(runtime::Dataset data, load_data(flags, plan->plan));
  if (!options.sample_prompt.empty())  // what the vocabulary lacks would show after the training
    MOEC_RETURN_IF_ERROR(data.tokenizer->encode(options.sample_prompt).status());
  MOEC_ASSIGN_OR_RETURN(auto device, make_device(flags.device));
  MOEC_ASSIGN_OR_RETURN(const runtime::RunLock lock, runtime::lock_run(flags.options.out_dir));
  MOEC_RETURN_IF_ERROR(check_trace_file(flags));
  MOEC_RETURN_IF_ERROR(runtime::check_start(*plan, *device, options));
  // Before the plan takes the device's memory.
  MOEC_ASSIGN_OR_RETURN(options.ceilings, find_ceilings(flags, plan->plan.recipe->dtype));
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, runtime::Session::create(plan, std::move(device)));
  options.seed = flags.recipe.seed();
  if (flags.recipe.lr()) options.lr = static_cast<double>(*flags.recipe.lr());
  options.run_options = run_options(flags, options.max_steps, data);
  options.stop = &stop_asked;
  stop_on_signals();

  MOEC_ASSIGN_OR_RETURN(std::vector<std::string> lines, header(session, data, options.ceilings));
  MOEC_ASSIGN_OR_RETURN(const bool changed, data_changed(flags, data));
  if (changed)
    lines.push_back("data    not what the run was trained on so far: it does not go on with the same bits");
  LiveOutput out(stdout);
  Progress progress(out, std::move(lines));
  const auto start = std::chrono::steady_clock::now();
  MOEC_ASSIGN_OR_RETURN(const runtime::TrainResult result,
                        runtime::train(session, std::move(data), options, progress.observer()));
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  out.line(result_text(result, elapsed.count(), options.out_dir));
  if (result.train_loss && !std::isfinite(*result.train_loss))
    return failure(fmt::format("the training loss is not finite at step {}: lower --lr", result.step));
  return {};
}

void add_data_flags(CLI::App& app, TrainFlags& flags) {
  runtime::DatasetOptions& data = flags.data;
  app.add_option("--data", data.files, "Text, or token shards of llm.c, to train on")
      ->required()
      ->type_name("FILE");
  CLI::Option* const files = app.add_option("--val-data", data.validation_files,
                                            "Validate on these files instead of a part of --data")
                                 ->type_name("FILE");
  app.add_option("--val-fraction", data.validation_fraction, "Last part of --data held out (default: 0.1)")
      ->check(number<double>(0, 0.9))
      ->excludes(files)
      ->type_name("X");
  app.add_option("--encoding", flags.encoding, "Tokens of text (default: bytes where 256 fit the vocabulary)")
      ->check(one_of({"bytes", "chars"}))
      ->type_name("bytes|chars");
}

void add_run_flags(CLI::App& app, TrainFlags& flags) {
  runtime::TrainOptions& options = flags.options;
  const auto count = [&](const std::string& name, auto& value, int64_t least, const std::string& help) {
    app.add_option(name, value, help)->check(number<int64_t>(least))->type_name("N");
  };
  app.add_option("--out-dir", options.out_dir, "Run directory: plan, weights, optimizer state, log")
      ->required()
      ->type_name("DIR");
  app.add_flag("--resume", options.resume, "Continue the run in --out-dir");
  count("--max-steps", flags.max_steps, 1, "Steps of the whole run (default: the schedule's total_steps)");
  count("--log-every", options.log_every, 1, "Steps between rows (default: 10)");
  count("--eval-every", options.eval_every, 0, "Steps between validations (default: at the end)");
  count("--eval-batches", options.eval_batches, 0, "Batches of a validation (default: all)");
  count("--save-every", options.save_every, 0, "Steps between checkpoints (default: at the end)");
  count("--sample-every", options.sample_every, 0, "Steps between samples (default: at the end)");
  app.add_option("--sample-prompt", options.sample_prompt, "Generate from this text to show progress")
      ->type_name("TEXT");
  add_device_flags(app, flags.device);
  app.add_option("--peak-tflops", flags.peak_tflops,
                 "100% of MFU (default: a matrix product, measured; on the GPU in bf16)")
      ->check(number<double>(1e-6))
      ->type_name("X");
  app.add_option("--trace", options.trace_file,
                 "Record some steps, for ui.perfetto.dev, and what the host costs the GPU")
      ->type_name("FILE");
}

constexpr const char* kExamples = R"(Examples:
  moerun train tiny.plan --data text.txt --max-steps 500 --out-dir run
  moerun train schema/examples/moe-tiny.json --batch-size 16 --data a.txt b.txt --out-dir run
  moerun train tiny.plan --data text.txt --max-steps 1000 --out-dir run --resume

Ctrl-C ends the run after the step, or the batch of an evaluation, under way, with a checkpoint; --resume goes on
with the same bits, and does what was due.)";

}  // namespace

Command train_command(CLI::App& app) {
  CLI::App* command = add_command(app, "train", "Train a plan, or a spec that is compiled first");
  auto flags = std::make_shared<TrainFlags>();
  flags->options.log_every = 10;
  command->add_option("PLAN|SPEC", flags->model, "Plan of moec, or model spec")->required();
  add_data_flags(*command, *flags);
  add_run_flags(*command, *flags);
  flags->recipe.add_to(*command);
  command->footer(kExamples);
  return {command, [flags] { return train(*flags); }};
}

}  // namespace moec::tools
