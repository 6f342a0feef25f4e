#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <utility>

#include "runtime/dataset.h"
#include "runtime/run_dir.h"
#include "tools/commands.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

struct EvalFlags {
  std::string model;  // a plan or a run directory
  std::vector<std::string> data;
  int64_t batches = 0;
  DeviceFlags device;
};

/// A session with the model's weights, and the tokenizer of its run (none for a plan, whose weights are the
/// initial ones).
struct Model {
  runtime::Session session;
  runtime::TokenizerPtr tokenizer;
};

Result<Model> open_model(const EvalFlags& flags) {
  if (!std::filesystem::is_directory(flags.model)) {
    MOEC_ASSIGN_OR_RETURN(const auto plan, runtime::load_plan(flags.model));
    MOEC_ASSIGN_OR_RETURN(runtime::Session session, open_session(plan, flags.device));
    MOEC_RETURN_IF_ERROR(session.initialise(plan->plan.recipe->seed, plan->plan.recipe->lr));
    return Model{std::move(session), nullptr};
  }
  MOEC_RETURN_IF_ERROR(runtime::read_run_config(flags.model).status());  // before the device is asked
  MOEC_ASSIGN_OR_RETURN(const auto plan, runtime::load_run_plan(flags.model));
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, open_session(plan, flags.device));
  MOEC_ASSIGN_OR_RETURN(const runtime::RunConfig config,
                        runtime::load_current_parameters(flags.model, session));
  return Model{std::move(session), config.tokenizer};
}

Status evaluate(const EvalFlags& flags) {
  MOEC_ASSIGN_OR_RETURN(Model model, open_model(flags));
  runtime::Session& session = model.session;
  MOEC_ASSIGN_OR_RETURN(runtime::Dataset data, runtime::load_dataset({.files = flags.data,
                                                                      .validation_files = {},
                                                                      .validation_fraction = 0,
                                                                      .encoding = {},
                                                                      .tokenizer = model.tokenizer,
                                                                      .vocab_size = session.vocab_size(),
                                                                      .seq_len = session.seq_len()}));
  const size_t tokens = data.train.size();
  MOEC_RETURN_IF_ERROR(session.set_data({}, std::move(data.train)));
  const bool part = flags.batches > 0 && flags.batches < session.validation_batches();
  const std::string extent =
      part ? fmt::format("{} batches", flags.batches) : fmt::format("{} tokens", with_commas(tokens));
  const auto start = std::chrono::steady_clock::now();
  MOEC_ASSIGN_OR_RETURN(const double loss, session.evaluate(flags.batches));
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  fmt::print("loss {:.4f} | perplexity {:.2f} | {} in {}\n", loss, std::exp(loss), extent,
             duration_text(elapsed.count()));
  return {};
}

constexpr const char* kExamples = R"(Examples:
  moerun eval run --data held-out.txt
  moerun eval tiny.plan --data text.txt --eval-batches 10    the untrained model)";

}  // namespace

Command eval_command(CLI::App& app) {
  CLI::App* command =
      add_command(app, "eval", "Mean loss of a run's model, or of an untrained plan, on text");
  auto flags = std::make_shared<EvalFlags>();
  command->add_option("PLAN|RUN_DIR", flags->model, "Run directory of a training, or plan")->required();
  command->add_option("--data", flags->data, "Text or token shards")->required()->type_name("FILE");
  command->add_option("--eval-batches", flags->batches, "Only the first batches (default: all)")
      ->check(number<int64_t>(0))
      ->type_name("N");
  add_device_flags(*command, flags->device);
  command->footer(kExamples);
  return {command, [flags] { return evaluate(*flags); }};
}

}  // namespace moec::tools
