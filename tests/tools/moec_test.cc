// moec as its users meet it: exit codes, messages, files.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/tools/process.h"

namespace moec::test {
namespace {

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

/// Nothing on stdout, one line on stderr that holds `part`.
void check_error(int exit_code, const std::vector<std::string>& arguments, const std::string& part) {
  const Outcome outcome = run("moec", arguments);
  CAPTURE(part);
  CHECK(outcome.exit_code == exit_code);
  CHECK(outcome.out.empty());
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  CHECK(has(outcome.err, "moec"));
  CHECK_MESSAGE(has(outcome.err, part), outcome.err);
}

/// Wrong use.
void check_rejected(const std::vector<std::string>& arguments, const std::string& part) {
  check_error(2, arguments, part);
}

/// The tiny plan, compiled into the scratch directory.
std::string compile_tiny(const Scratch& scratch) {
  const std::string plan = scratch.path("tiny.plan");
  const Outcome outcome = run("moec", {example("moe-tiny"), "-o", plan});
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  return plan;
}

}  // namespace

TEST_CASE("moec compiles a spec and says what it takes") {
  const Scratch scratch;
  const std::string plan = scratch.path("tiny.plan");
  const Outcome outcome = run("moec", {example("moe-tiny"), "-o", plan});
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.err.empty());
  CHECK(has(outcome.out, "542,528 parameters, 345,920 active"));
  for (const char* row : {"weights", "gradients", "optimizer state", "saved activations", "temporaries",
                          "workspace", "activation arena", "lower bound", "FLOP"})
    CHECK_MESSAGE(has(outcome.out, row), row);
  CHECK(read(plan).substr(4, 4) == "MOEP");
}

TEST_CASE("moec compiles the 6.9B model and counts its parameters") {
  const Scratch scratch;
  const Outcome outcome = run("moec", {example("moe-6.9b"), "-o", scratch.path("big.plan")});
  CHECK(outcome.exit_code == 0);
  CHECK(has(outcome.out, "6,882,678,528 parameters, 1,786,599,168 active"));
}

TEST_CASE("recipe flags change the plan") {
  const Scratch scratch;
  const std::string plan = scratch.path("x.plan");
  const Outcome outcome =
      run("moec", {example("moe-tiny"), "-o", plan, "--batch-size", "2", "--seq-len", "32", "--grad-accum",
                   "3", "--dtype", "bf16", "--grad-dtype", "same", "--moment-dtype", "bf16"});
  CHECK(outcome.exit_code == 0);
  CHECK(
      has(outcome.out, "2 x 32 tokens x 3 micro-batches a step, bf16 weights, bf16 gradients, bf16 moments"));
}

TEST_CASE("the same spec gives the same plan, byte for byte") {
  const Scratch scratch;
  const std::string first = read(compile_tiny(scratch));
  CHECK(first == read(compile_tiny(scratch)));
}

TEST_CASE("--dump-stages shows every program's graph, on stdout or in a file") {
  const Scratch scratch;
  const std::string plan = scratch.path("x.plan"), dump = scratch.path("stages.txt");
  const Outcome to_stdout = run("moec", {"--dump-stages", example("moe-tiny"), "-o", plan});
  CHECK(to_stdout.exit_code == 0);
  CHECK(has(to_stdout.out, "grouped_linear("));
  CHECK(run("moec", {"--dump-stages=" + dump, example("moe-tiny"), "-o", plan}).exit_code == 0);
  for (const char* program : {"Init", "Accumulate", "Apply", "Evaluate", "Prefill"})
    CHECK_MESSAGE(has(read(dump), program), program);
  CHECK(has(to_stdout.out, read(dump)));
}

TEST_CASE("no tool replaces a spec or a plan by what it makes of it") {
  const Scratch scratch;
  const std::string spec = scratch.path("spec.json");
  std::filesystem::copy_file(example("moe-tiny"), spec);
  const auto size = std::filesystem::file_size(spec);
  CHECK(run("moec", {spec, "-o", spec}).exit_code == 2);
  CHECK(run("moec", {spec, "-o", scratch.path("a.plan"), "--dump-stages=" + spec}).exit_code == 2);
  CHECK(run("moebench", {"--step", spec, "--step-json", spec}).exit_code == 2);
  CHECK(std::filesystem::file_size(spec) == size);
  const std::string plan = scratch.path("a.plan");
  REQUIRE(run("moec", {spec, "-o", plan}).exit_code == 0);
  CHECK(run("moec", {"explain", plan, "--html", plan}).exit_code == 2);
  CHECK(run("moec", {"verify", plan}).exit_code == 0);
}

TEST_CASE("moec verify accepts a sound plan and rejects a damaged one") {
  const Scratch scratch;
  const std::string plan = compile_tiny(scratch);
  const Outcome sound = run("moec", {"verify", plan});
  CHECK(sound.exit_code == 0);
  CHECK(has(sound.out, "OK: 5 programs, "));

  const std::string bytes = read(plan), damaged = scratch.path("damaged.plan");
  for (const size_t size : {size_t{0}, size_t{3}, size_t{8}, bytes.size() / 2, bytes.size() - 64}) {
    CAPTURE(size);
    write(damaged, bytes.substr(0, size));
    check_rejected({"verify", damaged}, "damaged.plan");
    check_rejected({"explain", damaged}, "damaged.plan");
  }
}

TEST_CASE("a flipped byte never crashes moec verify") {
  const Scratch scratch;
  const std::string bytes = read(compile_tiny(scratch)), damaged = scratch.path("damaged.plan");
  for (size_t i = 0; i < 60; ++i) {
    std::string flipped = bytes;
    const size_t place = i * 7919 % bytes.size();
    flipped[place] = static_cast<char>(~flipped[place]);
    write(damaged, flipped);
    const Outcome outcome = run("moec", {"verify", damaged});
    CAPTURE(place);
    CHECK((outcome.exit_code == 0 || outcome.exit_code == 2));
    CHECK((outcome.exit_code == 0) == has(outcome.out, "OK:"));
  }
}

TEST_CASE("moec explain names the peak and the cost of every kernel") {
  const Scratch scratch;
  const Outcome outcome = run("moec", {"explain", compile_tiny(scratch)});
  CHECK(outcome.exit_code == 0);
  for (const char* part :
       {"Program accumulate", "Program prefill", "peak at instruction", "made by", "lower bound",
        "grouped_linear_bwd_weight", "100.0%", "for --cost-model h200, whatever this machine is"})
    CHECK_MESSAGE(has(outcome.out, part), part);
}

TEST_CASE("a memory budget is kept by computing activations again, or refused with what would help") {
  const Scratch scratch;
  const std::string spec = example("gpt2-124m"), plan = scratch.path("x.plan");
  const Outcome fits = run("moec", {spec, "-o", plan, "--memory-budget", "12GiB"});
  CHECK(fits.exit_code == 0);
  for (const char* part : {"recompute", "predicted time"}) CHECK_MESSAGE(has(fits.out, part), part);
  CHECK(run("moec", {"verify", plan}).exit_code == 0);
  for (const char* part : {"short of 4.00 GiB", "live at the peak: ", "would fit with --batch-size"})
    check_error(1, {spec, "-o", plan, "--memory-budget", "4GiB"}, part);
  check_error(1, {spec, "-o", plan, "--memory-budget", "1MiB"}, "no single change makes it fit");
  check_rejected({spec, "-o", plan, "--memory-budget", "12XB"}, "--memory-budget: '12XB'");
  check_rejected({spec, "-o", plan, "--memory-budget", "0.1B"}, "is less than 1 B");
}

TEST_CASE("a shortage of memory names a window of tokens that fits") {
  const Scratch scratch;
  std::vector<std::string> arguments = {example("char-gpt"), "-o", scratch.path("x.plan"), "--memory-budget",
                                        "28MB"};
  const std::string advice = "would fit with --window-tokens ";
  check_error(1, arguments, advice);
  const std::string said = run("moec", arguments).err;
  const size_t at = said.find(advice) + advice.size();
  const std::string tokens = said.substr(at, said.find_first_not_of("0123456789", at) - at);
  arguments.insert(arguments.end(), {"--window-tokens", tokens});
  CHECK_MESSAGE(run("moec", arguments).exit_code == 0, tokens);
}

TEST_CASE("a window of tokens that no machine holds is wrong use") {
  const Scratch scratch;
  for (const char* tokens : {"80000000000000", "999999999999999"})
    check_rejected({example("char-gpt"), "-o", scratch.path("x.plan"), "--window-tokens", tokens},
                   "than any m");
}

TEST_CASE("flags that the schedule ignores are refused") {
  const Scratch scratch;
  const std::string spec = example("moe-tiny"), plan = scratch.path("x.plan");
  const auto arguments = [&](const char* schedule, const char* flag, const char* value) {
    return std::vector<std::string>{spec,     "-o", plan, "--total-steps", "100", "--schedule",
                                    schedule, flag, value};
  };
  check_rejected(arguments("constant", "--min-lr-ratio", "0.1"),
                 "--min-lr-ratio is for --schedule linear, cosine or wsd");
  for (const char* schedule : {"constant", "linear", "cosine"})
    check_rejected(arguments(schedule, "--decay-steps", "10"), "--decay-steps is for --schedule wsd");
  CHECK(run("moec", arguments("cosine", "--min-lr-ratio", "0.1")).exit_code == 0);
  CHECK(run("moec", arguments("wsd", "--decay-steps", "10")).exit_code == 0);
}

TEST_CASE("a plan that the limit of file sizes does not let grow leaves nothing behind") {
  const Scratch scratch;
  const FileSizeLimit limit(4096);
  const Outcome outcome = run("moec", {example("moe-tiny"), "-o", scratch.path("x.plan")});
  CHECK(outcome.exit_code == 1);
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  CHECK_MESSAGE(has(outcome.err, "x.plan: cannot write"), outcome.err);
  CHECK(std::filesystem::is_empty(scratch.path("")));
}

TEST_CASE("moec frontier prints memory that falls against time that rises") {
  const Outcome table = run("moec", {"frontier", example("moe-tiny")});
  CHECK(table.exit_code == 0);
  CHECK(has(table.out, "tok/s"));
  const Outcome json =
      run("moec", {"frontier", example("moe-tiny"), "--json", "--all", "--cost-model", "cpu"});
  CHECK(json.exit_code == 0);
  const auto points = nlohmann::json::parse(json.out)["points"];
  CHECK(points.size() > 3);
  for (size_t i = 1; i < points.size(); ++i) {
    CHECK(points[i]["bytes"].get<uint64_t>() < points[i - 1]["bytes"].get<uint64_t>());
    CHECK(points[i]["seconds"].get<double>() > points[i - 1]["seconds"].get<double>());
  }
  check_rejected({"frontier", example("moe-tiny"), "--cost-model", "abacus"}, "--cost-model: 'abacus'");
}

TEST_CASE("measured kernel times replace predicted ones") {
  const Scratch scratch;
  const auto seconds = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"frontier", example("moe-tiny"), "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return nlohmann::json::parse(run("moec", arguments).out)["points"][0]["seconds"].get<double>();
  };
  const std::string file = scratch.path("measured.json");
  write(
      file,
      R"({"benchmarks": [{"name": "kernel/load_batch/any/i32[2097152]->i32[8,128]/manual_time", "median_us": 5e6}]})");
  CHECK(seconds({"--measured", file}) > 1);
  CHECK(seconds({}) < 0.1);
  write(file, "{}");
  check_rejected({"frontier", example("moe-tiny"), "--measured", file}, "measured.json");
}

TEST_CASE("moec fit finds the largest step of a memory") {
  const Outcome fits = run("moec", {"fit", example("moe-tiny"), "--memory", "64MiB"});
  CHECK(fits.exit_code == 0);
  for (const char* part :
       {"the recipe", "largest micro-batch, recompute", "longest sequence, recompute", "tok/s"})
    CHECK_MESSAGE(has(fits.out, part), part);
  const Outcome too_small = run("moec", {"fit", example("moe-tiny"), "--memory", "4MiB"});
  CHECK(too_small.exit_code == 1);
  CHECK(has(too_small.out, "does not fit"));
  CHECK(has(too_small.err, "short of 4.00 MiB"));
  check_rejected({"fit", example("moe-tiny")}, "--memory is required");
  check_rejected({"fit", example("moe-tiny"), "--memory", "0"}, "--memory: '0' is less than 1 B");
  check_rejected({"fit", example("moe-tiny"), "--memory", "64MiB", "--memory-budget", "64MiB"},
                 "unknown flag '--memory-budget'");
}

TEST_CASE("moec place writes the buffers back with offsets") {
  const Scratch scratch;
  const std::string csv = scratch.path("in.csv"), placed = scratch.path("out.csv");
  write(csv, "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n");
  const Outcome to_file = run("moec", {"place", csv, "--capacity", "12", "-o", placed});
  CHECK(to_file.exit_code == 0);
  CHECK(to_file.err.empty());
  CHECK_MESSAGE(has(to_file.out, "5 buffers: peak 12 B, lower bound 12 B, 1.0000 x"), to_file.out);
  CHECK(read(placed) ==
        "id,lower,upper,size,offset\nb1,0,3,4,8\nb2,3,9,4,8\nb3,0,9,4,4\nb4,9,21,4,4\nb5,0,21,4,0\n");
  write(csv, "\xef\xbb\xbf" + read(csv));  // a byte order mark
  CHECK(run("moec", {"place", csv, "--capacity", "12"}).out == read(placed));
  const Outcome to_stdout = run("moec", {"place", placed, "--capacity", "12"});
  CHECK(to_stdout.exit_code == 0);
  CHECK(to_stdout.out == read(placed));
  CHECK(has(to_stdout.err, "peak 12 B"));
}

TEST_CASE("moec place fails where no placement is within the capacity, and writes nothing") {
  const Scratch scratch;
  const std::string csv = scratch.path("in.csv"), placed = scratch.path("out.csv");
  write(csv, "id,lower,upper,size\na,0,2,6\nb,1,3,5\n");
  const Outcome outcome = run("moec", {"place", csv, "--capacity", "10", "-o", placed});
  CHECK(outcome.exit_code == 1);
  CHECK(outcome.out.empty());
  CHECK_MESSAGE(has(outcome.err, "in.csv: there is no placement within 10 B"), outcome.err);
  CHECK(has(outcome.err, "lower bound 11 B"));
  CHECK_FALSE(std::filesystem::exists(placed));
}

TEST_CASE("a bad placement file is one line that names the line") {
  const Scratch scratch;
  const std::string csv = scratch.path("in.csv");
  const auto check_text = [&](const std::string& text, const std::string& part) {
    CAPTURE(text);
    write(csv, text);
    check_rejected({"place", csv, "--capacity", "12"}, part);
  };
  const std::string header = "id,lower,upper,size\n";
  check_text("", "in.csv: no header");
  check_text("id,lower,size\n", "in.csv:1: the column 'upper' is missing");
  check_text("id,lower,upper,size,gaps\n", "in.csv:1: unknown column 'gaps'");
  check_text("id,lower,upper,size,size\n", "in.csv:1: two columns 'size'");
  check_text(header + "a,0,1,4\nb,0,1\n", "in.csv:3: 3 fields, but 4 columns");
  check_text(header + "a,0,1,4 B\n", "in.csv:2: size '4 B'");
  check_text(header + "a,0,1,-4\n", "in.csv:2: size '-4'");
  check_text(header + "a,0,1,99999999999999999999\n", "in.csv:2: size");
  check_text(header + "a,0,1,4\nb,0,1,4\na,0,1,4\n", "in.csv:4: a second buffer 'a'");
  check_text(header + "a,3,3,4\n", "in.csv:2: lower 3 is not below upper 3");
  check_text(header + "a,0,1,9223372036854775807\n", "in.csv: a buffer of more than 2^62 bytes");
  check_rejected({"place", csv}, "--capacity is required");
  check_rejected({"place", csv, "--capacity", "12k"}, "--capacity: '12k'");
  check_rejected({"place", scratch.path("none.csv"), "--capacity", "12"}, "none.csv");
}

TEST_CASE("wrong use of moec is one line and exit code 2") {
  const Scratch scratch;
  const std::string spec = example("moe-tiny"), plan = scratch.path("x.plan");
  check_rejected({}, "--help");
  check_rejected({spec, "-o", plan, "--batchsize", "4"}, "did you mean '--batch-size'?");
  check_rejected({"explain", "--html=", plan}, "--html: needs a value");
  check_rejected({spec, "-o", plan, "--frobnicate"}, "unknown flag '--frobnicate'");
  check_rejected({"explian", plan}, "did you mean 'explain'?");
  check_rejected({"verify"}, "PLAN is required");
  check_rejected({"verify", plan}, plan);
  check_rejected({spec, "-o", plan, "--batch-size", "many"}, "--batch-size: 'many'");
  check_rejected({spec, "-o", plan, "--batch-size", "-1"}, "--batch-size: '-1'");
  check_rejected({spec, "-o", plan, "--seed", "18446744073709551616"}, "--seed: '18446744073709551616'");
  check_rejected({spec, "-o", plan, "--batch-size", "99999999999"}, "--batch-size");
  check_rejected({spec, "-o", plan, "--lr", "nan"}, "--lr: 'nan'");
  check_rejected({spec, "-o", plan, "--dtype", "fp8"}, "--dtype: 'fp8' is not one of f32, f64, bf16, f16");
  check_rejected({spec, "-o", plan, "--loss-scale", "8"}, "loss_scale is for dtype F16");
  check_rejected({spec, "-o", plan, "--dtype", "f16", "--loss-scale", "0"}, "initial must be from 1");
  check_rejected({spec, "-o", plan, "--dtype", "f64", "--moment-dtype", "bf16"}, "moment_dtype must be F32");
  check_rejected({scratch.path("none.json"), "-o", plan}, "none.json");
  check_rejected({scratch.path(""), "-o", plan}, "not a regular file");
  CHECK_FALSE(std::filesystem::exists(plan));
}

TEST_CASE("a bad spec is one line that names the file, and leaves no plan") {
  const Scratch scratch;
  const std::string good = read(example("moe-tiny")), bad = scratch.path("bad.json"),
                    plan = scratch.path("x.plan");
  const auto check_changed = [&](const std::string& from, const std::string& to) {
    CAPTURE(from);
    std::string spec = good;
    REQUIRE(has(spec, from));
    spec.replace(spec.find(from), from.size(), to);
    write(bad, spec);
    const Outcome outcome = run("moec", {bad, "-o", plan});
    CHECK(outcome.exit_code == 2);
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
    CHECK_MESSAGE(has(outcome.err, "bad.json"), outcome.err);
    CHECK_FALSE(std::filesystem::exists(plan));
  };
  check_changed("\"blocks\": [", "\"blocks\": ");
  check_changed("\"RmsNorm\"", "\"RmsMorn\"");
  check_changed("\"context\"", "\"contxt\"");
  check_changed("\"out_features\": 96", "\"out_features\": 95");
  check_changed("\"inputs\": [\"qkv\"]", "\"inputs\": [\"kvq\"]");
  check_changed("\"inputs\": [\"attn_norm\"]", "\"inputs\": [\"rope\"]");
  check_changed("\"repeat\": 2", "\"repeat\": 4000000000");
  check_changed("\"vocab_size\": 1000, \"dim\": 64", "\"vocab_size\": 4000000000, \"dim\": 4000000000");
}

TEST_CASE("an unwritable output is a failure that leaves nothing behind") {
  const Scratch scratch;
  const Outcome outcome = run("moec", {example("moe-tiny"), "-o", scratch.path("no/such/dir/x.plan")});
  CHECK(outcome.exit_code != 0);
  CHECK(has(outcome.err, "no/such/dir/x.plan"));
  CHECK(std::filesystem::is_empty(scratch.path("")));
}

TEST_CASE("--help and --version of both tools") {
  for (const char* tool : {"moec", "moerun"}) {
    CAPTURE(tool);
    const Outcome help = run(tool, {"--help"}), version = run(tool, {"--version"});
    CHECK(help.exit_code == 0);
    CHECK(has(help.out, "Exit codes"));
    CHECK(version.exit_code == 0);
    CHECK(version.out.starts_with(tool));
  }
}

TEST_CASE("the help of every command shows how it is used") {
  const std::pair<const char*, std::vector<std::string>> commands[] = {
      {"moec", {"explain", "verify", "frontier", "fit", "place", "diff"}},
      {"moerun", {"train", "eval", "generate", "tune"}}};
  for (const auto& [tool, names] : commands)
    for (const std::string& name : names) {
      const Outcome help = run(tool, {name, "--help"});
      CHECK(help.exit_code == 0);
      CHECK_MESSAGE(has(help.out, std::string("\n  ") + tool + " " + name + " "), name);
    }
}

}  // namespace moec::test
