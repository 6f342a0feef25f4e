// moerun as its users meet it: exit codes, messages, files.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/run_dir.h"
#include "schema/plan_file.h"
#include "tests/tools/process.h"

namespace moec::test {
namespace {

using Words = std::vector<std::string>;

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A small plan and a text to train it on.
struct Setup {
  Setup() {
    write(text, sample_text(6000));
    const Outcome outcome =
        run("moec", {example("moe-tiny"), "-o", plan, "--batch-size", "2", "--seq-len", "32"});
    REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  }

  Words train(const std::string& dir, const Words& more) const {
    return Words{"train", plan, "--data", text, "--out-dir", scratch.path(dir), "--peak-tflops", "1"} + more;
  }

  Scratch scratch;
  std::string plan = scratch.path("tiny.plan");
  std::string text = scratch.path("text.txt");
};

void check_rejected(const Words& arguments, const std::string& part) {
  const Outcome outcome = run("moerun", arguments);
  CAPTURE(part);
  CHECK(outcome.exit_code == 2);
  CHECK(outcome.out.empty());
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  CHECK_MESSAGE(has(outcome.err, part), outcome.err);
}

/// The one model file of a run directory.
std::string model_bytes(const std::string& dir) {
  const nlohmann::json config = nlohmann::json::parse(read(dir + "/config.json"));
  return read(dir + "/" + config.at("model").get<std::string>());
}

}  // namespace

TEST_CASE("training lowers the loss and leaves a run directory") {
  const Setup setup;
  const Outcome outcome =
      run("moerun", setup.train("run", {"--max-steps", "60", "--log-every", "10", "--sample-prompt", "the ",
                                        "--warmup-steps", "1"}));
  CHECK(outcome.exit_code == 2);  // a plan has its schedule already
  const Outcome trained = run(
      "moerun", setup.train("run", {"--max-steps", "60", "--log-every", "10", "--sample-prompt", "the "}));
  REQUIRE_MESSAGE(trained.exit_code == 0, trained.err);
  CHECK(trained.err.empty());
  CHECK_FALSE(has(trained.out, "\r"));
  CHECK_FALSE(has(trained.out, "\x1b"));
  CHECK(has(trained.out, "step 60/60 | loss "));
  CHECK(has(trained.out, "validation loss "));
  CHECK(has(trained.out, "sample\n"));

  std::istringstream log(read(setup.scratch.path("run/log.jsonl")));
  std::vector<double> losses;
  for (std::string line; std::getline(log, line);)
    if (const auto row = nlohmann::json::parse(line); row.contains("loss")) losses.push_back(row.at("loss"));
  REQUIRE(losses.size() == 6);
  CHECK(losses.back() < losses.front() - 1);
  for (const char* name : {"run.plan", "config.json"})
    CHECK(std::filesystem::exists(setup.scratch.path("run/") + name));
}

TEST_CASE("a resumed run, and one with another thread count, end with the same weights") {
  const Setup setup;
  REQUIRE(run("moerun", setup.train("whole", {"--max-steps", "12"})).exit_code == 0);
  REQUIRE(run("moerun", setup.train("parts", {"--max-steps", "5"})).exit_code == 0);
  REQUIRE(run("moerun", setup.train("parts", {"--max-steps", "12", "--resume"})).exit_code == 0);
  REQUIRE(run("moerun", setup.train("threads", {"--max-steps", "12", "--threads", "1"})).exit_code == 0);
  const std::string weights = model_bytes(setup.scratch.path("whole"));
  CHECK(weights == model_bytes(setup.scratch.path("parts")));
  CHECK(weights == model_bytes(setup.scratch.path("threads")));
  REQUIRE(run("moerun", setup.train("seed", {"--max-steps", "12", "--seed", "7"})).exit_code == 0);
  CHECK(weights != model_bytes(setup.scratch.path("seed")));
}

TEST_CASE("a run that goes on with other data says so") {
  const Setup setup;
  const std::string other = setup.scratch.path("other.txt"), told = "not what the run was trained on so far";
  write(other, sample_text(7000));
  REQUIRE(run("moerun", setup.train("run", {"--max-steps", "2"})).exit_code == 0);
  const Outcome same = run("moerun", setup.train("run", {"--max-steps", "3", "--resume"}));
  CHECK(same.exit_code == 0);
  CHECK_FALSE(has(same.out, told));
  Words changed = setup.train("run", {"--max-steps", "4", "--resume"});
  std::ranges::replace(changed, setup.text, other);
  CHECK(has(run("moerun", changed).out, told));
}

TEST_CASE("a trace is a file that viewers of Chrome's format read, and planned memory is told") {
  const Setup setup;
  const std::string trace = setup.scratch.path("trace.json");
  const Outcome outcome =
      run("moerun", setup.train("run", {"--max-steps", "8", "--device", "cpu", "--trace", trace}));
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(has(outcome.out, "trace | instructions: instructions timed one by one"));
  CHECK(has(outcome.out, "memory  planned: "));
  CHECK(nlohmann::json::parse(read(trace)).at("traceEvents").size() > 100);
  check_rejected(setup.train("brief", {"--max-steps", "2", "--device", "cpu", "--trace", trace}),
                 "a trace needs a run of at least");
  for (const char* name : {"config.json", "run.plan", "log.jsonl"})
    check_rejected(
        setup.train("run", {"--max-steps", "16", "--resume", "--trace", setup.scratch.path("run/") + name}),
        "would replace a file of the run");
  const std::string beside = setup.scratch.path("new/trace.json");
  CHECK(run("moerun", setup.train("new", {"--max-steps", "8", "--device", "cpu", "--trace", beside}))
            .exit_code == 0);
  CHECK(std::filesystem::exists(beside));
}

TEST_CASE("a run that has all its steps is left as it is") {
  const Setup setup;
  REQUIRE(run("moerun", setup.train("run", {"--max-steps", "4"})).exit_code == 0);
  const std::string log = read(setup.scratch.path("run/log.jsonl"));
  const Words resume = setup.train("run", {"--max-steps", "4", "--resume"});
  CHECK(run("moerun", resume).err.empty());
  CHECK(read(setup.scratch.path("run/log.jsonl")) == log);
  write(setup.scratch.path("run/log.jsonl"), log + "{\"st");
  const Outcome damaged = run("moerun", resume);
  CHECK(damaged.exit_code == 0);
  CHECK(damaged.err ==
        "moerun train: warning: " + setup.scratch.path("run/log.jsonl") + ": dropped 1 damaged row\n");
  CHECK(read(setup.scratch.path("run/log.jsonl")) == log);
}

TEST_CASE("a spec is compiled with its flags, then trained") {
  const Setup setup;
  const Outcome outcome = run("moerun", {"train", example("moe-tiny"), "--batch-size", "2", "--seq-len", "32",
                                         "--total-steps", "60", "--data", setup.text, "--max-steps", "2",
                                         "--out-dir", setup.scratch.path("run"), "--peak-tflops", "1"});
  CHECK_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(has(outcome.out, "2 x 32 tokens a step"));
}

TEST_CASE(
    "f16 trains, continues and generates with a loss scale that finds its size, and the log names skipped "
    "steps") {
  const Setup setup;
  const std::string plan = setup.scratch.path("f16.plan"), dir = setup.scratch.path("run");
  REQUIRE(
      run("moec", {example("moe-tiny"), "-o", plan, "--batch-size", "2", "--seq-len", "32", "--dtype", "f16",
                   "--moment-dtype", "bf16", "--loss-scale", "1e10", "--loss-scale-interval", "20"})
          .exit_code == 0);
  const Words train = {"train", plan, "--data", setup.text, "--out-dir", dir, "--peak-tflops", "1"};
  const Outcome outcome = run("moerun", train + Words{"--max-steps", "60"});
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(has(outcome.out, "| scale 1e+10 |"));
  CHECK(has(outcome.out, "| scale 5e+09 |"));
  CHECK(has(outcome.out, "| skipped, the gradient is not finite\n"));

  std::istringstream log(read(dir + "/log.jsonl"));
  std::vector<int64_t> skipped;
  nlohmann::json last;
  for (std::string line; std::getline(log, line);) {
    const auto row = nlohmann::json::parse(line);
    if (row.contains("skipped")) skipped.push_back(row.at("step"));
    if (row.contains("loss_scale")) last = row;
  }
  CHECK(last.at("skipped_steps") == skipped.size());
  CHECK(last.at("loss_scale") < 1e10);
  CHECK(skipped.size() > 5);
  CHECK(skipped.size() < 50);
  REQUIRE(run("moerun", train + Words{"--max-steps", "80", "--resume"}).exit_code == 0);
  CHECK(run("moerun", {"generate", dir, "--prompt", "the ", "--max-tokens", "8"}).exit_code == 0);
}

TEST_CASE("SIGINT, SIGTERM and SIGHUP end a run with a checkpoint and exit code 0") {
  const Setup setup;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    CAPTURE(signal);
    const std::string dir = std::to_string(signal);
    const Outcome outcome = run("moerun", setup.train(dir, {"--max-steps", "1000000", "--log-every", "1"}),
                                Interruption{.output = "step ", .signal = signal});
    CHECK(outcome.exit_code == 0);
    CHECK(has(outcome.err, "stopping after the step under way"));
    CHECK(has(outcome.out, "stopped at step "));
    CHECK(std::filesystem::exists(setup.scratch.path(dir + "/config.json")));
  }
}

TEST_CASE("evaluation and generation use the run's weights") {
  const Setup setup;
  REQUIRE(run("moerun", setup.train("run", {"--max-steps", "60"})).exit_code == 0);
  const std::string dir = setup.scratch.path("run");
  const auto loss = [&](const std::string& model) {
    const Outcome outcome = run("moerun", {"eval", model, "--data", setup.text});
    REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
    return std::stod(outcome.out.substr(outcome.out.find("loss ") + 5));
  };
  CHECK(loss(dir) < loss(setup.plan) - 1);

  const Words generate = {"generate", dir, "--prompt", "the quick", "--max-tokens", "20"};
  const Outcome first = run("moerun", generate + Words{"--seed", "3"});
  CHECK(first.exit_code == 0);
  CHECK(first.out.starts_with("the quick"));
  CHECK(first.out.size() == 9 + 20 + 1);
  CHECK(first.out == run("moerun", generate + Words{"--seed", "3"}).out);
  CHECK(first.out != run("moerun", generate + Words{"--seed", "4"}).out);
}

TEST_CASE("on a device without variants there is nothing to tune, and the plan stays as it is") {
  const Setup setup;
  const std::string before = read(setup.plan), output = setup.scratch.path("tuned.plan");
  const Outcome outcome = run("moerun", {"tune", setup.plan, "-o", output, "--device", "cpu"});
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(has(outcome.out, "nothing to choose: cpu computes every kernel of the plan in one way\n"));
  CHECK(read(output) == before);
  REQUIRE(run("moerun", {"tune", setup.plan, "--device", "cpu"}).exit_code == 0);
  CHECK(read(setup.plan) == before);
}

TEST_CASE("a plan that is tuned for another device says so, and trains") {
  const Setup setup;
  fb::PlanT plan;
  fb::GetPlan(read(setup.plan).data())->UnPackTo(&plan);
  plan.variants = {"tiled"};
  plan.tuned_for = "some device";
  for (const auto& program : plan.programs)
    for (const auto& instruction : program->instructions)
      if (instruction->kernel == "linear") instruction->variant = 1;
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  const std::string tuned = setup.scratch.path("tuned.plan");
  write(tuned, std::string(bytes.begin(), bytes.end()));
  CHECK(run("moec", {"verify", tuned}).exit_code == 0);
  const Outcome explained = run("moec", {"explain", tuned});
  CHECK(has(explained.out, "Chosen for some device\n"));
  CHECK(has(explained.out, "linear                           tiled         "));
  const auto train = [&](const std::string& model, const std::string& dir) {
    const Outcome outcome =
        run("moerun", {"train", model, "--data", setup.text, "--out-dir", setup.scratch.path(dir),
                       "--peak-tflops", "1", "--max-steps", "4", "--device", "cpu"});
    REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
    return outcome.out;
  };
  CHECK(has(train(tuned, "tuned"), "tuning  for some device: not used on cpu\n"));
  CHECK_FALSE(has(train(setup.plan, "plain"), "tuning"));
  CHECK(model_bytes(setup.scratch.path("tuned")) == model_bytes(setup.scratch.path("plain")));
}

TEST_CASE("wrong use of moerun is one line and exit code 2") {
  const Setup setup;
  const std::string none = setup.scratch.path("none");
  check_rejected({}, "--help");
  check_rejected({"trian", setup.plan}, "did you mean 'train'?");
  check_rejected(setup.train("r", {"--max-stps", "5"}), "did you mean '--max-steps'?");
  check_rejected(setup.train("r", {"--max-steps", "0"}), "--max-steps: '0'");
  check_rejected(setup.train("r", {"--val-data=", "--resume"}), "--val-data: needs a value");
  check_rejected(setup.train("r", {"--max-steps", "ten"}), "--max-steps: 'ten'");
  check_rejected(setup.train("r", {"--batch-size", "4"}), "--batch-size");
  check_rejected(setup.train("r", {"--resume"}), "holds no checkpoint");
  check_rejected(setup.train("r", {"--max-steps", "2", "--encoding", "chars", "--sample-prompt", "日"}),
                 "not among");
  check_rejected(setup.train("r", {"--max-steps", "2", "--device", "cpu", "--execution", "eager"}),
                 "--execution");
  check_rejected({"train", setup.plan, "--out-dir", none}, "--data");
  check_rejected({"train", setup.plan, "--data", none, "--out-dir", none}, none);
  check_rejected({"train", none, "--data", setup.text, "--out-dir", none}, none);
  check_rejected({"train", setup.text, "--data", setup.text, "--out-dir", none}, "not a plan");
  check_rejected({"eval", none, "--data", setup.text}, none);
  check_rejected({"generate", none, "--prompt", "x"}, none);
  check_rejected({"generate", none, "--prompt", "x", "--top-p", "2"}, "--top-p: '2'");
  write(setup.scratch.path("short.txt"), "short");
  check_rejected({"train", setup.plan, "--data", setup.scratch.path("short.txt"), "--out-dir", none},
                 "5 tokens");
  CHECK_FALSE(std::filesystem::exists(none));
  CHECK_FALSE(std::filesystem::exists(setup.scratch.path("r")));
}

TEST_CASE("a training that is refused leaves no directory and no file") {
  Setup setup;
  fb::PlanT plan;
  fb::GetPlan(read(setup.plan).data())->UnPackTo(&plan);
  plan.programs[0]->instructions[0]->kernel = "unheard_of";  // shows when the directory is locked already
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  setup.plan = setup.scratch.path("unheard_of.plan");
  write(setup.plan, std::string(bytes.begin(), bytes.end()));
  std::filesystem::create_directory(setup.scratch.path("old"));
  for (const char* dir : {"new/nested/dir", "old", "old/new"}) {
    check_rejected(setup.train(dir, {"--max-steps", "2"}), "unheard_of");
    CHECK_FALSE(std::filesystem::exists(setup.scratch.path("new")));
    CHECK(std::filesystem::is_empty(setup.scratch.path("old")));
  }
}

TEST_CASE("a damaged checkpoint is refused before the run says what it does") {
  const Setup setup;
  REQUIRE(run("moerun", setup.train("run", {"--max-steps", "2"})).exit_code == 0);
  const std::string weights = setup.scratch.path("run/model-00000002.safetensors");
  std::string bytes = read(weights);
  bytes[bytes.size() - 9] ^= 1;
  write(weights, bytes);
  check_rejected(setup.train("run", {"--max-steps", "4", "--resume"}), weights + ": damaged");
}

TEST_CASE("a run directory in which another process trains is refused, until that process has ended") {
  const Setup setup;
  const Words steps = {"--max-steps", "2"};
  REQUIRE(run("moerun", setup.train("run", steps)).exit_code == 0);
  for (const Words& train :
       {setup.train("run", {"--max-steps", "4", "--resume"}), setup.train("new", steps)}) {
    {
      const auto other = runtime::lock_run(train[5]);
      REQUIRE(other.ok());
      CHECK_FALSE(runtime::lock_run(train[5]).ok());
      check_rejected(train, train[5] + ": another process trains in this directory");
    }
    CHECK(run("moerun", train).exit_code == 0);
  }
  const Words resume = setup.train("first", {"--max-steps", "4", "--resume"});
  check_rejected(resume, "holds no checkpoint");
  const auto other = runtime::lock_run(resume[5]);  // of a training that has no checkpoint yet
  REQUIRE(other.ok());
  check_rejected(resume, resume[5] + ": another process trains in this directory");
}

TEST_CASE("a run is not overwritten without --resume") {
  const Setup setup;
  REQUIRE(run("moerun", setup.train("run", {"--max-steps", "2"})).exit_code == 0);
  const std::string before = model_bytes(setup.scratch.path("run"));
  const Outcome outcome = run("moerun", setup.train("run", {"--max-steps", "4"}));
  CHECK(outcome.exit_code == 2);
  CHECK(has(outcome.err, "resume"));
  CHECK(outcome.out.empty());
  CHECK(before == model_bytes(setup.scratch.path("run")));
}

}  // namespace moec::test
