// moebench as its users meet it: exit codes and messages.
#include <doctest/doctest.h>

#include <algorithm>

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
  check_rejected({"--benchmark_filter=^none$", "--memory=0.01"}, "no row matches --benchmark_filter");
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
  const Outcome rows = run("moebench", {"--benchmark_list_tests", "--threads", "1", "--memory", "0.01"});
  CHECK(rows.exit_code == 0);
  CHECK(rows.out.find("table/") != std::string::npos);
  CHECK(run("moebench", {"--help"}).out.find("--benchmark_filter REGEX") != std::string::npos);
}

}  // namespace moec::test
