// A compiled mixture-of-experts model, trained, stopped and continued, in run directories sound and damaged.
#include "runtime/trainer.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "runtime/file_io.h"
#include "runtime/run_dir.h"
#include "runtime/safetensors.h"
#include "scratch_dir.h"
#include "small_session.h"

namespace moec::runtime {
namespace {

using namespace test;

/// Trains to `max_steps` in `dir`.
Result<TrainResult> train_in(Session& session, const std::string& dir, int64_t max_steps, bool resume,
                             const TrainObserver& observer = {}, const std::atomic<bool>* stop = nullptr) {
  TrainOptions options;
  options.max_steps = max_steps;
  options.out_dir = dir;
  options.resume = resume;
  options.seed = 5;
  options.save_every = 3;
  options.eval_every = 2;
  options.sample_prompt = "1 2 3";
  options.sample.max_tokens = 30;
  options.sample.sampler.seed = resume;  // which that of the run replaces
  options.run_options = {{"data", "made up"}};
  options.stop = stop;
  return train(session, dataset(), options, observer);
}

TEST_CASE("a run that is stopped and continued has the bits of one that was not") {
  using fb::DType;
  for (const Setup& setup :
       {Setup{.grad_accum = 2}, Setup{.dtype = DType::BF16}, Setup{.window = 100},
        Setup{.dtype = DType::BF16, .moment_dtype = DType::BF16, .wide_gradients = false, .grad_accum = 2},
        Setup{.dtype = DType::F16, .moment_dtype = DType::BF16},
        Setup{.dtype = DType::F16, .grad_accum = 2}}) {
    CAPTURE(fb::EnumNameDType(setup.dtype));
    const ScratchDir dir;
    Session whole = make_session(setup);
    must(train_in(whole, "", 10, false).status());

    std::atomic<bool> stop = false;
    TrainObserver observer;
    observer.on_step = [&](const StepReport& report) { stop = report.step == 5; };
    Session first = make_session(setup);
    const TrainResult stopped = must(train_in(first, dir.path(), 10, false, observer, &stop));
    CHECK(stopped.stopped);
    CHECK(stopped.step == 5);
    CHECK_FALSE(stopped.validation_loss);  // that of step 4 is not of this one

    Session second = make_session(setup);
    const TrainResult result = must(train_in(second, dir.path(), 10, true));
    CHECK_FALSE(result.stopped);
    CHECK(result.validation_loss);
    CHECK(must(second.state_hash()) == must(whole.state_hash()));
    const TrainState expected = must(whole.read_train_state()), state = must(second.read_train_state());
    CHECK(state.loss_scale == expected.loss_scale);
    CHECK(state.clean_steps == expected.clean_steps);
    CHECK(state.skipped_steps == expected.skipped_steps);
    CHECK(second.step() == 10);
  }
}

/// Steps of the log's rows that have this key.
std::vector<int64_t> steps_with(const std::string& dir, const char* key) {
  std::vector<int64_t> steps;
  std::istringstream log(slurp(log_path(dir)));
  for (std::string line; std::getline(log, line);)
    if (const auto row = nlohmann::json::parse(line); row.contains(key)) steps.push_back(row.at("step"));
  return steps;
}

/// The last sample that the log tells of.
std::string last_sample(const std::string& dir) {
  std::string text;
  std::istringstream log(slurp(log_path(dir)));
  for (std::string line; std::getline(log, line);)
    if (const auto row = nlohmann::json::parse(line); row.contains("sample")) text = row.at("sample");
  return text;
}

TEST_CASE("what a stop leaves undone is done when the run is continued, once") {
  for (const int64_t last : {6, 7}) {  // of which 6 is also a step at which an evaluation is due
    const ScratchDir dir;
    std::atomic<bool> stop = false;
    TrainObserver stopping;
    stopping.on_step = [&](const StepReport& report) { stop = report.step == 6; };
    Session first = make_session();
    CHECK(must(train_in(first, dir.path(), last, false, stopping, &stop)).stopped);
    CHECK(steps_with(dir.path(), "loss").size() == 6);
    CHECK(steps_with(dir.path(), "validation_loss") == std::vector<int64_t>{2, 4});
    CHECK(steps_with(dir.path(), "sample").empty());

    Session second = make_session();
    const TrainResult result = must(train_in(second, dir.path(), last, true));
    CHECK_FALSE(result.stopped);
    CHECK(result.validation_loss);
    std::vector<int64_t> evaluations = {2, 4, 6};
    if (last == 7) evaluations.push_back(7);
    CHECK(steps_with(dir.path(), "validation_loss") == evaluations);
    CHECK(steps_with(dir.path(), "sample") == std::vector<int64_t>{last});

    const ScratchDir unbroken;
    Session session = make_session();
    must(train_in(session, unbroken.path(), last, false).status());
    for (const auto& file : std::filesystem::directory_iterator(unbroken.path()))
      if (const std::string name = file.path().filename(); name != "log.jsonl")  // which tells the time
        CHECK_MESSAGE(slurp(unbroken / name) == slurp(dir / name), name);
    CHECK(last_sample(unbroken.path()) == last_sample(dir.path()));

    const std::string log = slurp(log_path(dir.path()));
    Session third = make_session();
    must(train_in(third, dir.path(), last, true).status());
    CHECK(slurp(log_path(dir.path())) == log);
  }
}

TEST_CASE("a run directory holds one checkpoint, and its log every step once") {
  const ScratchDir dir;
  Session session = make_session();
  must(train_in(session, dir.path(), 7, false).status());
  CHECK(dir.count() == 5);  // plan, model, optimizer, config, log
  const RunConfig config = must(read_run_config(dir.path()));
  CHECK(config.step == 7);
  CHECK(config.options.at("data") == "made up");
  CHECK(config.tokenizer->vocab_size() == kVocabulary);
  CHECK(must(Safetensors::open(dir / config.model_file)).tensors().size() ==
        session.plan().plan.parameters.size());

  CHECK(contains(train_in(session, dir.path(), 9, false).error().message, "holds a run already"));
  Session again = make_session();
  must(train_in(again, dir.path(), 9, true).status());
  int64_t steps = 0, samples = 0;
  std::istringstream log(slurp(log_path(dir.path())));
  for (std::string line; std::getline(log, line);) {
    const auto row = nlohmann::json::parse(line);
    if (row.contains("loss")) CHECK(row.at("step") == ++steps);
    samples += row.contains("sample");
  }
  CHECK(steps == 9);
  CHECK(samples == 2);

  Session model = must(Session::create(must(load_run_plan(dir.path())), make_cpu_device()));
  must(load_parameters(dir.path(), must(read_run_config(dir.path())), model));
  CHECK(must(model.prefill(tokens(5))) == must(again.prefill(tokens(5))));
}

TEST_CASE("a run that was killed before its first checkpoint starts anew") {
  const ScratchDir dir;
  dir.file("log.jsonl", "{\"step\": 3, \"loss\": 1}\n");
  dir.file("optimizer-00000003.safetensors.17-0", "");
  std::vector<std::string> warnings;
  TrainObserver observer;
  observer.on_warning = [&](std::string_view text) { warnings.emplace_back(text); };
  Session session = make_session();
  must(train_in(session, dir.path(), 4, false, observer).status());
  CHECK(warnings ==
        std::vector{log_path(dir.path()) + ": replaced the log of a run that left no checkpoint"});
  CHECK(steps_with(dir.path(), "loss") == std::vector<int64_t>{1, 2, 3, 4});
}

TEST_CASE("a checkpoint whose config.json is lost is not overwritten") {
  const ScratchDir dir;
  Session session = make_session();
  must(train_in(session, dir.path(), 1, false).status());
  std::filesystem::remove(dir / "config.json");
  const Status status = train_in(session, dir.path(), 1, false).status();
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().kind == ErrorKind::kInput);
  CHECK(contains(status.error().message, "without its config.json"));
  CHECK(file_exists(dir / "model-00000001.safetensors"));
}

TEST_CASE("a log that tells of no step, as of a run whose first row met a full disk, is no run") {
  for (const char* log : {"", "{\"step\": ", "{\"step\": \"one\"}\n[1]\n"}) {
    const ScratchDir dir;
    dir.file("log.jsonl", log);
    Session session = make_session();
    must(train_in(session, dir.path(), 1, false).status());
    CHECK(slurp(log_path(dir.path())).starts_with("{\"aux_loss\":"));
  }
}

TEST_CASE("damaged rows of a log are dropped with a warning") {
  const ScratchDir dir;
  Session session = make_session();
  must(train_in(session, dir.path(), 3, false).status());
  const std::string log = slurp(log_path(dir.path()));
  const std::string not_finite = "{\"step\": 1, \"validation_loss\": null}\n";
  const std::string kept = not_finite + log;
  const std::string damaged[] = {"{\"step\"; 1}",
                                 "{\"loss\": 1}",
                                 "{\"step\": 0, \"loss\": 1}",
                                 "{\"step\": \"2\", \"loss\": 1}",
                                 "{\"step\": 4, \"loss\": \"one\"}",
                                 "{\"step\": 1, \"validation_loss\": [1]}",
                                 "{\"step\": 1, \"sample\": null}",
                                 "{\"step\": 2, \"loss\": 1}",  // again
                                 "{\"ste"};
  std::string found = kept + "{\"step\": 9, \"loss\": 1}\n";
  for (const std::string& row : damaged) found += row + "\n";
  dir.file("log.jsonl", found);
  std::vector<std::string> warnings;
  TrainObserver observer;
  observer.on_warning = [&](std::string_view text) { warnings.emplace_back(text); };
  for (int i = 0; i < 2; ++i) {
    must(train_in(session, dir.path(), 3, true, observer).status());
    CHECK(slurp(log_path(dir.path())) == kept);
    CHECK(warnings == std::vector{log_path(dir.path()) + ": dropped 9 damaged rows"});
  }
}

TEST_CASE("a step that is skipped has a row, whatever rows were asked for") {
  Session session = make_session();
  TrainOptions options;
  options.max_steps = 20;
  options.log_every = 7;
  std::vector<int64_t> rows, skipped;
  TrainObserver observer;
  observer.on_evaluation = [&](int64_t step, double) {
    // Every gradient is multiplied with the loss scale.
    const double scale = step == 9 ? std::numeric_limits<double>::infinity() : 1;
    must(session.device().write(session.plan().plan.io->train_state, offsetof(TrainState, loss_scale),
                                std::as_bytes(std::span(&scale, 1))));
  };
  observer.on_step = [&](const StepReport& report) {
    (report.skipped ? skipped : rows).push_back(report.step);
    if (!report.skipped) return;
    CHECK(contains(format_row(report), "skipped, the gradient is not finite"));
    CHECK(to_json(report).at("skipped") == true);
  };
  options.eval_every = 3;
  options.eval_batches = 1;
  must(train(session, dataset(), options, observer).status());
  CHECK(rows == std::vector<int64_t>{7, 14, 20});
  CHECK(skipped == std::vector<int64_t>{10, 11, 12});
}

TEST_CASE("a trace holds every instruction of some steps, and changes no bit") {
  const ScratchDir dir;
  const auto trained = [&](const std::string& trace_file) {
    Session session = make_session();
    TrainOptions options;
    options.max_steps = 10;
    options.seed = 5;
    options.ceilings = {.flops = 1e12, .bytes = 1e11};
    options.trace_file = trace_file;
    must(train(session, dataset(), options).status());
    return must(session.state_hash());
  };
  CHECK(trained(dir / "trace.json") == trained(""));
  const auto trace = nlohmann::json::parse(slurp(dir / "trace.json"));
  const Session session = make_session();
  const size_t step = session.plan().program(fb::ProgramKind::Accumulate)->instructions.size() +
                      session.plan().program(fb::ProgramKind::Apply)->instructions.size();
  size_t events = 0;
  double end = 0;
  for (const auto& event : trace.at("traceEvents")) {
    if (event.at("ph") != "X") continue;
    ++events;
    CHECK(event.at("ts").get<double>() >= end);
    end = event.at("ts").get<double>() + event.at("dur").get<double>() - 1e-3;
    CHECK(event.at("args").at("% of ceiling").get<double>() >= 0);
    CHECK_FALSE(event.at("args").at("kernel").get<std::string>().empty());
  }
  CHECK(events % step == 0);
  CHECK(events / step == 3);

  Session brief = make_session();
  TrainOptions options;
  options.max_steps = 3;
  options.trace_file = dir / "none.json";
  CHECK(contains(train(brief, dataset(), options).error().message, "at least 6 steps"));
}

TEST_CASE("a start that cannot be is refused before the device has loaded the plan") {
  const ScratchDir dir;
  Session session = make_session();
  must(train_in(session, dir.path(), 3, false).status());
  const auto check = [&](const TrainOptions& options) {
    return check_start(session.plan(), *make_cpu_device(), options);
  };
  const TrainOptions resumed{.max_steps = 9, .out_dir = dir.path(), .resume = true};
  must(check(resumed));
  TrainOptions options = resumed;
  options.trace_file = dir / "trace.json";
  must(check(options));
  options.max_steps = 8;
  CHECK(contains(check(options).error().message, "at least 6 steps"));
  options = resumed;
  options.max_steps = 2;
  CHECK(contains(check(options).error().message, "at step 3 already"));
  options = resumed;
  options.log_every = 0;
  CHECK(contains(check(options).error().message, "log_every"));
  const std::string state = slurp(dir / "optimizer-00000003.safetensors");
  dir.file("optimizer-00000003.safetensors", state.substr(0, state.size() - 1));
  CHECK(contains(check(resumed).error().message, "optimizer-00000003.safetensors"));
}

TEST_CASE("a damaged run directory is an input error") {
  const ScratchDir dir;
  CHECK(read_run_config(dir.path()).error().kind == ErrorKind::kInput);
  Session session = make_session();
  must(train_in(session, dir.path(), 1, false).status());
  const std::string config = slurp(dir / "config.json");
  for (size_t size = 0; size + 2 < config.size(); ++size)
    CHECK(read_run_config((dir.file("config.json", config.substr(0, size)), dir.path())).error().kind ==
          ErrorKind::kInput);
  for (size_t i = 0; i < config.size(); ++i) {
    std::string damaged = config;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    dir.file("config.json", damaged);
    CHECK_MESSAGE(!read_run_config(dir.path()).ok(), damaged);
  }

  auto json = nlohmann::json::parse(config);
  json["step"] = 2;
  dir.file("config.json", json.dump());
  CHECK(contains(read_run_config(dir.path()).error().message, "config.json: damaged"));
  json["version"] = 1;  // by which a checksum may be missing, but not be wrong
  dir.file("config.json", json.dump());
  CHECK_FALSE(read_run_config(dir.path()).ok());
  json.erase("checksum");
  dir.file("config.json", json.dump());
  CHECK(contains(train_in(session, dir.path(), 9, true).error().message, "config.json of step 2"));
  json["model"] = "../model.safetensors";
  dir.file("config.json", json.dump());
  CHECK(contains(read_run_config(dir.path()).error().message, "'model' is not the name of a file"));
  json["version"] = 2;
  dir.file("config.json", json.dump());
  CHECK(contains(read_run_config(dir.path()).error().message, "config.json: damaged"));
  CHECK(train_in(session, "", 9, true).error().kind == ErrorKind::kInput);
}

TEST_CASE("a damaged checkpoint is refused") {
  for (const char* name : {"model-00000003.safetensors", "optimizer-00000003.safetensors"}) {
    const ScratchDir dir;
    Session session = make_session();
    must(train_in(session, dir.path(), 3, false).status());
    const RunConfig config = must(read_run_config(dir.path()));
    std::string bytes = slurp(dir / name);
    bytes[bytes.size() - 9] ^= 1;
    dir.file(name, bytes);
    Session loaded = make_session();
    const Status status = load_checkpoint(dir.path(), config, loaded);
    CHECK(contains(status.error().message, std::string(name) + ": damaged"));
  }
}

TEST_CASE("a model is loaded beside a training that replaces it") {
  const ScratchDir dir, steps[2];
  std::string files[2];  // of weights
  for (int i = 0; i < 2; ++i) {
    Session session = make_session();
    must(train_in(session, steps[i].path(), i + 1, false).status());
    files[i] = must(read_run_config(steps[i].path())).model_file;
  }
  const auto save = [&](int i) {  // in the order of a training
    must(write_file(dir / files[i], slurp(steps[i] / files[i])));
    must(write_file(dir / "config.json", slurp(steps[i] / "config.json")));
    std::filesystem::remove(dir / files[1 - i]);
  };
  save(0);
  std::atomic<bool> done = false;
  std::jthread training([&] {
    for (int i = 1; !done; i = 1 - i) save(i);
  });
  Session session = make_session();
  for (int i = 0; i < 300; ++i) {
    const auto config = load_current_parameters(dir.path(), session);
    CHECK_MESSAGE(config.ok(), config.error().message);
  }
  done = true;
}

TEST_CASE("what a run has not written stays") {
  const ScratchDir dir;
  const char* const kNames[] = {
      "model-notes.txt",        "model-best.safetensors", "optimizer-00000001.safetensors.bak",
      "run.plan.bak",           "config.json5",           "config.json.1",
      "model-1.safetensors.old"};
  for (const char* name : kNames) std::ofstream(dir / name) << name;
  std::filesystem::create_directory(dir / "model-dir");
  for (const char* name : {"model-00000001.safetensors.12-0", "run.plan.12-0", "config.json.345-1"})
    std::ofstream(dir / name) << "unfinished";
  Session session = make_session();
  must(train_in(session, dir.path(), 4, false).status());
  must(train_in(session, dir.path(), 7, true).status());
  for (const char* name : kNames) CHECK_MESSAGE(slurp(dir / name) == name, name);
  CHECK(dir.count() == 5 + std::size(kNames) + 1);
}

TEST_CASE("an interrupted save leaves the checkpoint before it") {
  const ScratchDir dir;
  Session session = make_session();
  must(train_in(session, dir.path(), 3, false).status());
  const std::string config = slurp(dir / "config.json");
  must(session.train_step());
  // Everything is written but config.json: its place is taken by a directory.
  std::filesystem::rename(dir / "config.json", dir / "kept");
  std::filesystem::create_directory(dir / "config.json");
  CHECK_FALSE(save_run(dir.path(), session, *make_id_tokenizer(kVocabulary), {}).ok());
  std::filesystem::remove(dir / "config.json");
  std::filesystem::rename(dir / "kept", dir / "config.json");
  Session loaded = make_session();
  must(load_checkpoint(dir.path(), must(read_run_config(dir.path())), loaded));
  CHECK(loaded.step() == 3);
  must(train_in(loaded, dir.path(), 5, true).status());
  CHECK(dir.count() == 5);  // leftovers of the interrupted save are gone
}

TEST_CASE("a save that fails leaves nothing behind that fills the disk") {
  const ScratchDir dir;
  Session session = make_session();
  must(train_in(session, dir.path(), 3, false).status());
  const size_t before = dir.count();
  must(session.train_step());
  // The weights can be written, the optimizer's state cannot.
  std::filesystem::create_directories(dir / "optimizer-00000004.safetensors/taken");
  CHECK_FALSE(save_run(dir.path(), session, *make_id_tokenizer(kVocabulary), {}).ok());
  std::filesystem::remove_all(dir / "optimizer-00000004.safetensors");
  CHECK(dir.count() == before);
}

TEST_CASE("a report row reads like llm.c's") {
  StepReport report{.step = 12,
                    .max_steps = 1000,
                    .metrics = {.step = 11, .loss = 4.12344, .grad_norm = 1.2345, .lr = 3e-4},
                    .milliseconds = 12.34,
                    .tokens_per_second = 9876.4,
                    .mfu = std::nullopt};
  CHECK(format_row(report) ==
        "step   12/1000 | loss 4.1234 | norm 1.234 | lr 3.00e-04 | 12.3 ms | 9876 tok/s");
  report.mfu = 0.4123;
  CHECK(contains(format_row(report), "| 12.3 ms | 41.2% MFU | 9876 tok/s"));
  CHECK(to_json(report).at("step") == 12);
  CHECK_FALSE(to_json(report).contains("loss_scale"));
  report.metrics.loss_scale = 32768;
  CHECK(contains(format_row(report), "| lr 3.00e-04 | scale 32768 | 12.3 ms |"));
  CHECK(to_json(report).at("loss_scale") == 32768);
}

}  // namespace
}  // namespace moec::runtime
