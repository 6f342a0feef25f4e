// moebench as its users meet it: exit codes and messages.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/tools/process.h"

namespace moec::test {
namespace {

void check_rejected(const std::vector<std::string>& arguments, const std::string& message) {
  const Outcome outcome = run("moebench", arguments);
  CHECK(outcome.exit_code == 2);
  CHECK(outcome.out.empty());
  CHECK(outcome.err == "moebench: " + message + "\n");
}

}  // namespace

TEST_CASE("wrong use of moebench is one line and exit code 2") {
  check_rejected({"--thread", "1"}, "unknown flag '--thread'; did you mean '--threads'?");
  check_rejected({"--benchmark_filtr=x"},
                 "unknown flag '--benchmark_filtr'; did you mean '--benchmark_filter'?");
  check_rejected({"--total-step", "9"}, "unknown flag '--total-step'; did you mean '--total-steps'?");
  check_rejected({"everything"}, "unexpected argument 'everything'; see --help");
  check_rejected({"--routing", "skewed"}, "--routing is for --step PLAN|SPEC");
  for (const char* flag : {"--lr", "--seed", "--batch-size"})
    check_rejected({flag, "1"}, std::string(flag) + " is for --step SPEC");
  check_rejected({"--benchmark_filter"}, "--benchmark_filter: 1 required REGEX missing");
  check_rejected({"--benchmark_filter=("}, "--benchmark_filter: '(' is not a regular expression");
  check_rejected({"--benchmark_format=xml"}, "--benchmark_format: 'xml' is not one of console, json, csv");
  check_rejected({"--benchmark_repetitions=x"},
                 "--benchmark_repetitions: 'x' is not a whole number of at least 1");
  for (const char* text : {"foo", "a=b=c", "a=b,", "=b"})
    check_rejected({std::string("--benchmark_context=") + text},
                   std::string("--benchmark_context: '") + text + "' is not KEY=VALUE,...");
  check_rejected({"--benchmark_out=/none/out.json"},
                 "--benchmark_out: /none/out.json: cannot write here: No such file or directory");
  for (const char* flag : {"--benchmark_out", "--step", "--step-json"}) {
    check_rejected({std::string(flag) + "=", "--threads=1"}, std::string(flag) + ": needs a value");
    check_rejected({flag, ""}, std::string(flag) + ": needs a value");
  }
  check_rejected({"--benchmark_out_format=csv"}, "--benchmark_out_format requires --benchmark_out");
  for (const char* text : {"1e400", "inf"}) {
    check_rejected({"--benchmark_min_time", text},
                   fmt::format("--benchmark_min_time: '{}' is not a number from 0 to 86400", text));
    check_rejected({"--benchmark_min_warmup_time", text},
                   fmt::format("--benchmark_min_warmup_time: '{}' is not a number from 0 to 86400", text));
    check_rejected({"--memory", text}, fmt::format("--memory: '{}' is not a number from 0 to 1048576", text));
  }
  check_rejected({"--benchmark_counters_tabular=maybe"},
                 "--benchmark_counters_tabular: 'maybe' is not one of true, false");
  for (const char* flag : {"--benchmark_filter=x", "--benchmark_list_tests", "--memory=2"}) {
    const std::string name = flag;
    check_rejected({"--step", example("moe-tiny"), flag},
                   name.substr(0, name.find('=')) + " is for rows, not for --step");
  }
  const Scratch scratch;
  const std::string plan = scratch.path("tiny.plan");
  REQUIRE(run("moec", {example("moe-tiny"), "-o", plan}).exit_code == 0);
  check_rejected({"--step", plan, "--cost-model", "cpu"},
                 "--cost-model is compiled into a plan: give it to moec, or take a SPEC instead of " + plan);
  check_rejected({"--benchmark_filter=^none$", "--examples", "/none"},
                 "/none: no model specs (*.json) there");
}

TEST_CASE("moebench lists its rows and its flags") {
  const Scratch scratch;
  const std::string out = scratch.path("out");
  write(out, "before");
  const Outcome rows = run(
      "moebench", {"--benchmark_list_tests", "--threads", "1", "--memory", "0.01", "--benchmark_out", out});
  CHECK(rows.exit_code == 0);
  CHECK(read(out) == "before");
  CHECK(rows.out.find("table/") != std::string::npos);
  CHECK(run("moebench", {"--help"}).out.find("--benchmark_filter REGEX") != std::string::npos);
}

TEST_CASE("--benchmark_out gets all rows, or stays as it is") {
  const Scratch scratch;
  const std::string out = scratch.path("out");
  const auto rows = [&](const std::string& filter, const std::vector<std::string>& more,
                        const std::optional<Interruption>& interruption = {}) {
    std::vector<std::string> arguments = {"--threads=1", "--memory=0.01", "--benchmark_filter=" + filter,
                                          "--benchmark_repetitions=20", "--benchmark_out=" + out};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run("moebench", arguments, interruption);
  };
  const std::string softmax = "^table/softmax", quick = "--benchmark_min_time=0";
  std::filesystem::create_symlink("none", out);
  CHECK(rows(softmax, {quick}).exit_code == 0);
  const auto written = nlohmann::json::parse(read(out), nullptr, false);
  REQUIRE(written.is_object());
  CHECK(written["benchmarks"].size() == 24);

  write(out, "before");
  CHECK(rows("^none$", {}).exit_code == 2);
  CHECK(read(out) == "before");
  CHECK(rows(softmax, {"--benchmark_format=json"}, Interruption{"context"}).exit_code == 128 + SIGINT);
  CHECK(read(out) == "before");
  const FileSizeLimit limit(4096);
  const Outcome full = rows(softmax, {quick, "--benchmark_display_aggregates_only"});
  CHECK(full.exit_code == 1);
  CHECK_MESSAGE(full.err.find("\nmoebench: " + out + ": cannot write") != std::string::npos, full.err);
  CHECK(read(out) == "before");
}

}  // namespace moec::test
