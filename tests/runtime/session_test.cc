// A compiled mixture-of-experts model, trained, stopped, continued and sampled.
#include "runtime/session.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "kernels/cpu/cpu_kernels.h"
#include "runtime/run_dir.h"
#include "runtime/safetensors.h"
#include "runtime/trainer.h"
#include "scratch_dir.h"

namespace moec::runtime {
namespace {

using test::contains;

constexpr int64_t kVocabulary = 61;

template <class T>
T must(Result<T> result) {
  if (!result.ok()) FAIL(result.error().message);
  return std::move(result).value();
}

void must(const Status& status) {
  if (!status.ok()) FAIL(status.error().message);
}

struct Setup {
  fb::DType dtype = fb::DType::F32;
  fb::DType moment_dtype = fb::DType::F32;
  bool wide_gradients = true;  // f32, else as dtype
  uint32_t grad_accum = 1;
  int64_t window = 4096;
};

Session make_session(const Setup& setup = {}) {
  fb::ModelT model = read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json");
  model.recipe->dtype = setup.dtype;
  model.recipe->moment_dtype = setup.moment_dtype;
  model.recipe->grad_dtype = setup.wide_gradients ? fb::DType::F32 : setup.dtype;
  if (setup.dtype == fb::DType::F16) {
    model.recipe->loss_scale = std::make_unique<fb::LossScaleT>();
    model.recipe->loss_scale->growth_interval = 3;
  }
  model.recipe->grad_accum = setup.grad_accum;
  model.recipe->sampling = fb::Sampling::Epoch;
  const std::vector<uint8_t> bytes = serialize_plan(compile(model, {.window_tokens = setup.window}));
  auto plan = must(parse_plan(std::string(bytes.begin(), bytes.end()), "tiny.plan"));
  return must(Session::create(plan, make_cpu_device(), {.poison_activations = true}));
}

/// A sequence that can be learnt: each token decides the next.
std::vector<int32_t> tokens(size_t count) {
  std::vector<int32_t> result(count);
  for (size_t i = 1; i < count; ++i) result[i] = (result[i - 1] * 7 + 3) % static_cast<int32_t>(kVocabulary);
  return result;
}

Dataset dataset(size_t train = 1500, size_t validation = 200) {
  return {
      .train = tokens(train), .validation = tokens(validation), .tokenizer = make_id_tokenizer(kVocabulary)};
}

Session started(const Setup& setup = {}) {
  Session session = make_session(setup);
  Dataset data = dataset();
  must(session.set_data(std::move(data.train), std::move(data.validation)));
  must(session.initialise(5, 0.01));
  return session;
}

uint64_t hash_after(int steps, const Setup& setup) {
  Session session = started(setup);
  for (int i = 0; i < steps; ++i) must(session.train_step());
  return must(session.state_hash());
}

TEST_CASE("training lowers both losses, in every storage type") {
  for (const fb::DType dtype : {fb::DType::F32, fb::DType::F64, fb::DType::BF16, fb::DType::F16}) {
    CAPTURE(fb::EnumNameDType(dtype));
    Session session = started({.dtype = dtype, .grad_accum = 2});
    const double before = must(session.evaluate(0));
    CHECK(before == doctest::Approx(std::log(kVocabulary)).epsilon(0.05));
    for (int i = 0; i < 60; ++i) must(session.train_step());
    CHECK(must(session.read_metrics(59)).loss < 0.5 * must(session.read_metrics(0)).loss);
    CHECK(must(session.evaluate(0)) < 0.5 * before);
    CHECK(must(session.read_train_state()).step == 60);
    CHECK(must(session.read_train_state()).micro_batch == 120);
    CHECK_FALSE(session.read_metrics(60).ok());
    CHECK_FALSE(session.read_metrics(-1).ok());
  }
}

TEST_CASE("the number of threads changes no bit") {
  const Setup setup{.grad_accum = 2};
  const int before = cpu::threads();
  cpu::set_threads(1);
  const uint64_t one = hash_after(5, setup);
  cpu::set_threads(3);
  CHECK(hash_after(5, setup) == one);
  cpu::set_threads(before);
  CHECK(hash_after(4, setup) != one);
}

TEST_CASE("evaluation and prefill leave training as it was") {
  Session session = started();
  for (int i = 0; i < 6; ++i) {
    must(session.train_step());
    must(session.evaluate(i).status());
    must(session.prefill(tokens(7)).status());
  }
  CHECK(must(session.state_hash()) == hash_after(6, {}));
}

TEST_CASE("a tracer sees every instruction of a step and changes no bit") {
  Session session = started({.grad_accum = 2});
  size_t seen = 0;
  must(session.train_step([&](const TraceEvent&) -> Status {
    ++seen;
    return {};
  }));
  const LoadedPlan& plan = session.plan();
  CHECK(seen == 2 * plan.program(fb::ProgramKind::Accumulate)->instructions.size() +
                    plan.program(fb::ProgramKind::Apply)->instructions.size());
  CHECK(must(session.state_hash()) == hash_after(1, {.grad_accum = 2}));
}

TEST_CASE("a parameter that is written is read back, to the last bit of its master") {
  for (const fb::DType dtype : {fb::DType::F32, fb::DType::F64, fb::DType::BF16, fb::DType::F16}) {
    CAPTURE(fb::EnumNameDType(dtype));
    Session session = started({.dtype = dtype});
    must(session.train_step());
    HostTensor value = must(session.read_parameter(0));
    CHECK(value.info.dtype == (dtype == fb::DType::F64 ? fb::DType::F64 : fb::DType::F32));
    if (dtype == fb::DType::F64) {
      value.as<double>()[3] = 0.1;
    } else {
      value.as<float>()[3] = 0.1f;
    }
    must(session.write_parameter(value));
    CHECK(must(session.read_parameter(value.info.name)).data == value.data);
    value.info.shape.push_back(1);
    CHECK_FALSE(session.write_parameter(value).ok());
    CHECK(contains(session.read_parameter("nothing").error().message, "'nothing'"));
  }
}

TEST_CASE("bad tokens and prompts are errors") {
  Session session = make_session();
  CHECK(contains(session.train_step().error().message, "no training data"));
  CHECK(contains(session.set_data({1, 2, 61, 4}, {}).error().message, "token 61 at position 2"));
  CHECK(contains(session.set_data(tokens(12), {}).error().message, "need 13"));
  CHECK(contains(session.prefill({}).error().message, "0 tokens; the plan takes 1 to "));
  CHECK_FALSE(session.prefill(tokens(static_cast<size_t>(session.prefill_length()) + 1)).ok());
  CHECK(must(session.prefill(tokens(3))).size() == kVocabulary);
}

TEST_CASE("data longer than the window is all seen, and evaluated") {
  constexpr size_t kTokens = 4 * 96 + 1;  // four chunks of 8 sequences of 12 tokens
  Session session = make_session({.window = 97});
  must(session.set_data(tokens(kTokens), tokens(kTokens)));
  must(session.initialise(5, 0.01));
  std::vector<std::vector<std::byte>> contents;
  for (int i = 0; i < 20; ++i) {
    must(session.train_step());
    HostTensor now = must(session.read_tensor(session.plan().plan.io->window));
    if (contents.empty() || contents.back() != now.data) contents.push_back(std::move(now.data));
  }
  REQUIRE(contents.size() == 5);  // a chunk lasts 4 steps of 2 sequences
  CHECK(contents[4] == contents[0]);

  Session roomy = make_session();
  must(roomy.set_data(tokens(kTokens), tokens(kTokens)));
  must(roomy.initialise(5, 0.01));
  must(session.initialise(5, 0.01));
  CHECK(must(session.evaluate(0)) == doctest::Approx(must(roomy.evaluate(0))).epsilon(1e-12));
  CHECK(must(session.evaluate(5)) == doctest::Approx(must(roomy.evaluate(5))).epsilon(1e-12));
}

TEST_CASE("metrics that are read later are those of their steps") {
  Session session = started();
  CHECK_FALSE(session.read_metrics_later().ok());
  must(session.start_timer());
  std::vector<LateMetrics> late;
  for (int i = 0; i < 5; ++i) {
    must(session.train_step());
    late.push_back(must(session.read_metrics_later()));
  }
  for (int64_t step = 0; step < 5; ++step) {
    LateMetrics& metrics = late[static_cast<size_t>(step)];
    CHECK(metrics.first_step() == step);
    CHECK(must(metrics.ready()));
    CHECK(must(metrics.metrics()).loss == must(session.read_metrics(step)).loss);
    CHECK(must(metrics.seconds()) > 0);
  }
}

TEST_CASE("one read brings the metrics of several steps") {
  Session session = started();
  CHECK_FALSE(session.read_metrics_later(0).ok());
  for (int i = 0; i < 5; ++i) must(session.train_step());
  CHECK_FALSE(session.read_metrics_later(6).ok());
  LateMetrics late = must(session.read_metrics_later(3));
  CHECK(late.first_step() == 2);
  CHECK(late.steps() == 3);
  REQUIRE(must(late.ready()));
  for (int64_t i = 0; i < 3; ++i) {
    const StepMetrics metrics = must(late.metrics(i));
    CHECK(metrics.step == 2 + i);
    CHECK(metrics.loss == must(session.read_metrics(2 + i)).loss);
  }
  for (int i = 0; i < Session::kMostLateSteps; ++i) must(session.train_step());
  CHECK(session.read_metrics_later(Session::kMostLateSteps).ok());
  CHECK_FALSE(session.read_metrics_later(Session::kMostLateSteps + 1).ok());
}

TEST_CASE("no read of metrics spans the end of the ring") {
  Session session = started();
  TrainState state = must(session.read_train_state());
  state.step = kMetricsRows - 2;
  must(session.restore_train_state(state));
  for (int i = 0; i < 3; ++i) must(session.train_step());
  CHECK_FALSE(session.read_metrics_later(2).ok());
  CHECK(must(must(session.read_metrics_later(1)).metrics()).step == kMetricsRows);
}

TEST_CASE("a plan whose batches the host writes takes steps on them") {
  fb::ModelT model = read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json");
  const std::vector<uint8_t> bytes = serialize_plan(compile(model, {.host_batches = true}));
  const auto plan = must(parse_plan(std::string(bytes.begin(), bytes.end()), "tiny.plan"));
  Session session = must(Session::create(plan, make_cpu_device()));
  CHECK(plan->plan.io->window < 0);
  must(session.initialise(5, 0.01));
  const auto count = static_cast<size_t>(session.batch_size() * session.seq_len());
  must(session.write_batch(tokens(count), tokens(count)));
  for (int step = 0; step < 3; ++step) must(session.train_step());
  CHECK(must(session.read_metrics(2)).loss < must(session.read_metrics(0)).loss);
}

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
    const test::ScratchDir dir;
    Session whole = make_session(setup);
    must(train_in(whole, "", 10, false).status());

    std::atomic<bool> stop = false;
    TrainObserver observer;
    observer.on_step = [&](const StepReport& report) { stop = report.step == 5; };
    Session first = make_session(setup);
    const TrainResult stopped = must(train_in(first, dir.path(), 10, false, observer, &stop));
    CHECK(stopped.stopped);
    CHECK(stopped.step == 5);

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

TEST_CASE("a run directory holds one checkpoint, and its log every step once") {
  const test::ScratchDir dir;
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
  std::istringstream log(test::slurp(log_path(dir.path())));
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

TEST_CASE("the log of a run without a checkpoint is not overwritten") {
  const test::ScratchDir dir;
  dir.file("log.jsonl", "{\"step\": 3}\n");
  Session session = make_session();
  const Status status = train_in(session, dir.path(), 7, false).status();
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().kind == ErrorKind::kInput);
  CHECK(contains(status.error().message, "log.jsonl"));
  CHECK(test::slurp(log_path(dir.path())) == "{\"step\": 3}\n");
}

TEST_CASE("a log that tells of no step, as of a run whose first row met a full disk, is no run") {
  for (const char* log : {"", "{\"step\": ", "{\"step\": \"one\"}\n[1]\n"}) {
    const test::ScratchDir dir;
    dir.file("log.jsonl", log);
    Session session = make_session();
    must(train_in(session, dir.path(), 1, false).status());
    CHECK(test::slurp(log_path(dir.path())).starts_with("{\"aux_loss\":"));
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
  const test::ScratchDir dir;
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
  const auto trace = nlohmann::json::parse(test::slurp(dir / "trace.json"));
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
  const test::ScratchDir dir;
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
  const std::string state = test::slurp(dir / "optimizer-00000003.safetensors");
  dir.file("optimizer-00000003.safetensors", state.substr(0, state.size() - 1));
  CHECK(contains(check(resumed).error().message, "optimizer-00000003.safetensors"));
}

TEST_CASE("a damaged run directory is an input error") {
  const test::ScratchDir dir;
  CHECK(read_run_config(dir.path()).error().kind == ErrorKind::kInput);
  Session session = make_session();
  must(train_in(session, dir.path(), 1, false).status());
  const std::string config = test::slurp(dir / "config.json");
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
    const test::ScratchDir dir;
    Session session = make_session();
    must(train_in(session, dir.path(), 3, false).status());
    const RunConfig config = must(read_run_config(dir.path()));
    std::string bytes = test::slurp(dir / name);
    bytes[bytes.size() - 9] ^= 1;
    dir.file(name, bytes);
    Session loaded = make_session();
    const Status status = load_checkpoint(dir.path(), config, loaded);
    CHECK(contains(status.error().message, std::string(name) + ": damaged"));
  }
}

TEST_CASE("an interrupted save leaves the checkpoint before it") {
  const test::ScratchDir dir;
  Session session = make_session();
  must(train_in(session, dir.path(), 3, false).status());
  const std::string config = test::slurp(dir / "config.json");
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
  const test::ScratchDir dir;
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

TEST_CASE("generation continues past the context, follows its seed, and stops when told") {
  Session session = started();
  const TokenizerPtr tokenizer = make_id_tokenizer(kVocabulary);
  const auto text_of = [&](const GenerateOptions& options, int64_t stop_after = 1000) {
    std::string text;
    must(generate(session, *tokenizer, "1 2 3", options, [&](int32_t, std::string_view piece) {
      text += piece;
      return --stop_after > 0;
    }));
    return text;
  };
  const std::string first = text_of({.max_tokens = 40, .sampler = {.seed = 3}});
  CHECK(must(tokenizer->encode(first)).size() == 40);
  CHECK(session.prefill_length() < 40);
  CHECK(text_of({.max_tokens = 40, .sampler = {.seed = 3}}) == first);
  CHECK(text_of({.max_tokens = 40, .sampler = {.seed = 4}}) != first);
  CHECK(must(tokenizer->encode(text_of({.max_tokens = 40}, 2))).size() == 2);
  const TokenizerPtr few = make_id_tokenizer(5);
  must(generate(session, *few, "1", {.max_tokens = 50}, [](int32_t token, std::string_view) {
    CHECK(token < 5);
    return true;
  }));
  CHECK(contains(generate(session, *tokenizer, "", {}, nullptr).error().message, "prompt is empty"));
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
