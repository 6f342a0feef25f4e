// The data of the report and the comparison of two plans, against the plans they come from.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "tests/tools/process.h"
#include "tools/plan_diff.h"
#include "tools/plan_stats.h"
#include "tools/report/html_report.h"
#include "tools/report/report_data.h"

namespace moec::test {
namespace {

using Json = nlohmann::json;

constexpr const char* kHostile = "</script><img src=x onerror=alert(1)><!-- \" ' & \xff";

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

fb::PlanT example_plan(const std::string& name, uint64_t budget = 0) {
  fb::ModelT model = read_model(example(name));
  model.recipe->memory_budget = budget;
  return compile(model);
}

/// Recompute needs fewer bytes than the plan that keeps everything.
fb::PlanT recomputing_plan() {
  const uint64_t kept = tools::device_bytes(example_plan("gpt2-124m"));
  return example_plan("gpt2-124m", kept / 2);
}

template <class T>
T sum(const Json& column) {
  T total = 0;
  for (const Json& value : column) total += value.get<T>();
  return total;
}

}  // namespace

TEST_CASE("the report's data is the plan's") {
  for (const bool recompute : {false, true}) {
    CAPTURE(recompute);
    const fb::PlanT plan = recompute ? recomputing_plan() : example_plan("moe-6.9b");
    const Json data = Json::parse(tools::report_data(plan));
    uint64_t flops = 0, bytes = 0, size = 0, again = 0;
    double seconds = 0;
    size_t count = 0;
    for (const auto& program : plan.programs)
      for (const auto& instruction : program->instructions) {
        const Json& columns = data["instructions"];
        CHECK(data["strings"][columns["label"][count].get<size_t>()] == instruction->label);
        CHECK(data["strings"][columns["kernel"][count].get<size_t>()] == instruction->kernel);
        flops += instruction->flops;
        bytes += instruction->bytes;
        again += instruction->recompute;
        seconds += instruction->seconds;
        ++count;
      }
    for (const auto& buffer : plan.buffers) size += buffer->size;
    CHECK(data["instructions"]["flops"].size() == count);
    CHECK(sum<uint64_t>(data["instructions"]["flops"]) == flops);
    CHECK(sum<uint64_t>(data["instructions"]["bytes"]) == bytes);
    CHECK(sum<uint64_t>(data["instructions"]["recompute"]) == again);
    CHECK((again > 0) == recompute);
    CHECK(sum<uint64_t>(data["instructions"]["derived"]) == 0);
    CHECK(sum<double>(data["instructions"]["seconds"]) == doctest::Approx(seconds).epsilon(1e-4));
    CHECK(data["buffers"]["size"].size() == plan.buffers.size());
    CHECK(sum<uint64_t>(data["buffers"]["size"]) == size);
    CHECK(data["tensors"]["buffer"].size() == plan.tensors.size());
    CHECK(data["header"]["device_bytes"] == tools::device_bytes(plan));
    REQUIRE(data["programs"].size() == plan.programs.size());
    for (size_t i = 0; i < plan.programs.size(); ++i) {
      const tools::ProgramMemory memory = tools::program_memory(plan, i);
      CHECK(data["programs"][i]["count"] == plan.programs[i]->instructions.size());
      CHECK(data["programs"][i]["live_peak"] == memory.live_peak);
      CHECK(data["programs"][i]["peak_instruction"] == memory.peak_instruction);
    }
  }
}

TEST_CASE("times that a plan does not predict are derived, and said to be") {
  fb::PlanT plan = example_plan("moe-tiny");
  size_t count = 0;
  plan.cost_model.clear();
  for (auto& program : plan.programs)
    for (auto& instruction : program->instructions) instruction->seconds = 0, ++count;
  const Json data = Json::parse(tools::report_data(plan));
  CHECK(sum<size_t>(data["instructions"]["derived"]) == count);
  CHECK(sum<double>(data["instructions"]["seconds"]) > 0);
}

TEST_CASE("the report shows repeated blocks once, with types and parameters") {
  const Json data = Json::parse(tools::report_data(example_plan("moe-6.9b")));
  REQUIRE(data["blocks"].size() == 3);
  const Json& block = data["blocks"][1];
  CHECK(block["repeat"] == 30);
  std::map<std::string, Json> nodes;
  for (const Json& node : block["nodes"]) nodes[node["name"]] = node;
  CHECK(nodes["rope"]["type"] == "bf16[2, 4096, 896]");
  CHECK(nodes["qkv"]["type"] == "");  // part of rope
  CHECK(nodes["qkv"]["parameters"] == "weight [896, 768]");
  CHECK(nodes["router"]["op"] == "Router");
  CHECK(has(nodes["attn_norm"]["type"], "4096, 768]"));
}

TEST_CASE("no name in a plan can leave the report's data") {
  fb::PlanT plan = example_plan("moe-tiny");
  plan.model->name = kHostile;
  plan.buffers.front()->name = kHostile;
  plan.programs.front()->instructions.front()->label = "{{plan}}";
  const std::string data = tools::report_data(plan), page = tools::html_report(plan);
  CHECK_FALSE(has(data, "<"));
  CHECK_FALSE(has(page, "<img"));
  CHECK(has(page, data));
  const std::string name = Json::parse(data)["header"]["name"];
  CHECK(name == "</script><img src=x onerror=alert(1)><!-- \" ' & \xEF\xBF\xBD");
}

TEST_CASE("moec explain --html writes one page that needs nothing else") {
  const Scratch scratch;
  const std::string plan = scratch.path("big.plan"), page = scratch.path("big.html");
  REQUIRE(run("moec", {example("moe-6.9b"), "-o", plan}).exit_code == 0);
  const Outcome outcome = run("moec", {"explain", plan, "--html", page});
  CHECK(outcome.exit_code == 0);
  CHECK(has(outcome.out, page));
  const std::string html = read(page);
  CHECK(html.size() < size_t{10} << 20);
  for (const char* mark : {"{{", "src=", "href=\"http", "@import", "url("})
    CHECK_MESSAGE(!has(html, mark), mark);
  CHECK(has(html, "default-src 'none'"));
}

TEST_CASE("the comparison of a plan with itself finds nothing") {
  const fb::PlanT plan = example_plan("moe-tiny");
  const std::string text = tools::difference(plan, plan);
  for (const char* part : {"the same\n", "  none\n", "the same buffers are live"})
    CHECK_MESSAGE(has(text, part), text);
  CHECK_FALSE(has(text, "%"));
}

TEST_CASE("the comparison names what recompute changes") {
  const std::string text = tools::difference(example_plan("gpt2-124m"), recomputing_plan());
  for (const char* part : {"memory budget          none -> ", "Activations", "predicted time",
                           "of it recompute", "new", "kernel ", "live there", "gone"})
    CHECK_MESSAGE(has(text, part), text);
}

TEST_CASE("moec explain --diff wants two plans") {
  const Scratch scratch;
  const std::string plan = scratch.path("tiny.plan"), wide = scratch.path("wide.plan");
  REQUIRE(run("moec", {example("moe-tiny"), "-o", plan}).exit_code == 0);
  REQUIRE(run("moec", {example("moe-tiny"), "-o", wide, "--batch-size", "16"}).exit_code == 0);
  const Outcome outcome = run("moec", {"explain", "--diff", plan, wide});
  CHECK(outcome.exit_code == 0);
  CHECK_MESSAGE(has(outcome.out, "8 x 128 tokens -> 16 x 128 tokens"), outcome.out);
  CHECK(has(outcome.out, "+100.0%"));
  CHECK(run("moec", {"explain", "--diff", plan}).exit_code == 2);
  CHECK(run("moec", {"explain", plan, wide}).exit_code == 2);
  CHECK(run("moec", {"explain", "--diff", plan, wide, "--html", scratch.path("x.html")}).exit_code == 2);
}

}  // namespace moec::test
