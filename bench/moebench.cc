// moebench: times kernels and whole steps against what the machine can do.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <ostream>
#include <regex>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "bench/rows.h"
#include "bench/step_table.h"
#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "runtime/cuda/cuda_device.h"
#include "runtime/file_io.h"
#include "tools/command_line.h"
#include "tools/recipe_flags.h"
#include "tools/units.h"

namespace moec::bench {
namespace {

struct Flags {
  std::string device = "cpu";
  int threads = 0;
  double memory_gib = 1;
  std::string step;                  // a plan or a spec
  std::string step_json;             // where its figures go, too
  std::vector<std::string> routing;  // of that step; names
  tools::RecipeFlags recipe;
  std::string examples = MOEC_EXAMPLES;
  std::string out;  // a file for the rows, too
  std::string out_format = "json";
  std::vector<const CLI::Option*> of_rows;    // that --step has no use for
  std::vector<const CLI::Option*> of_google;  // those of them that Google Benchmark reads

  uint64_t memory() const {
    return static_cast<uint64_t>(memory_gib * static_cast<double>(uint64_t{1} << 30));
  }
};

/// The models of schema/examples by what can be done with them in the memory that may be used.
struct Examples {
  std::vector<Model> whole;              // kernels and steps
  std::vector<Model> one_of_each_block;  // kernels: repeated blocks have the same ones
  std::vector<std::string> left_out;     // "qwen2.5-0.5b (8.20 GiB)"
};

uint64_t memory_of(const runtime::LoadedPlan& plan) {
  uint64_t bytes = 0;
  for (const auto& arena : plan.plan.arenas) bytes += arena->size;
  return bytes;
}

Result<std::shared_ptr<const runtime::LoadedPlan>> compile_model(const fb::ModelT& model) {
  const std::vector<uint8_t> bytes = serialize_plan(compile(model));
  return runtime::parse_plan(std::string(bytes.begin(), bytes.end()), model.name);
}

Status sort_in(const std::string& spec, uint64_t memory, Examples& examples) {
  fb::ModelT model = read_model(spec);
  MOEC_ASSIGN_OR_RETURN(const auto whole, compile_model(model));
  if (memory_of(*whole) <= memory) {
    examples.whole.push_back({model.name, whole});
    return {};
  }
  for (const auto& block : model.blocks) block->repeat = 1;
  MOEC_ASSIGN_OR_RETURN(const auto cut, compile_model(model));
  if (memory_of(*cut) <= memory) {
    examples.one_of_each_block.push_back({model.name, cut});
  } else {
    examples.left_out.push_back(fmt::format("{} ({})", model.name, tools::bytes_text(memory_of(*cut))));
  }
  return {};
}

Result<Examples> load_examples(const Flags& flags) {
  std::error_code error;
  std::vector<std::string> specs;
  for (const auto& entry : std::filesystem::directory_iterator(flags.examples, error))
    if (entry.path().extension() == ".json") specs.push_back(entry.path().string());
  if (specs.empty()) return input_error(fmt::format("{}: no model specs (*.json) there", flags.examples));
  std::sort(specs.begin(), specs.end());
  Examples examples;
  for (const std::string& spec : specs) MOEC_RETURN_IF_ERROR(sort_in(spec, flags.memory(), examples));
  return examples;
}

/// Where the rows run.
struct Lanes {
  Lane table;
  Lane models;  // kernels and steps
};

Result<Lanes> open_lanes(const Flags& flags) {
  if (flags.device == "cuda" || (flags.device == "auto" && runtime::cuda_available().ok())) {
    MOEC_ASSIGN_OR_RETURN(const Lane gpu, Lane::cuda());
    return Lanes{gpu, gpu};
  }
  const Lane one_thread = Lane::cpu(1);
  return Lanes{one_thread, flags.threads == 1 ? one_thread : Lane::cpu(flags.threads)};
}

Status print_step_table(const Flags& flags) {
  MOEC_RETURN_IF_ERROR(tools::check_replaces_none("--step-json", flags.step_json, {{flags.step}}));
  MOEC_ASSIGN_OR_RETURN(const auto plan, tools::open_plan_or_spec(flags.step, flags.recipe));
  MOEC_ASSIGN_OR_RETURN(const Lanes lanes, open_lanes(flags));
  std::vector<Routing> routings;
  for (const std::string& name : flags.routing)
    routings.push_back(static_cast<Routing>(std::ranges::find(kRoutingNames, name) - kRoutingNames.begin()));
  if (routings.size() > 1) {
    if (!flags.step_json.empty()) return input_error("--step-json takes one --routing");
    MOEC_ASSIGN_OR_RETURN(const std::string table, routing_table(plan, lanes.models, routings));
    fmt::print("{}", table);
    return {};
  }
  const auto routing = routings.empty() ? std::optional<Routing>() : routings[0];
  MOEC_ASSIGN_OR_RETURN(const MeasuredStep step, measure_step(plan, lanes.models, routing));
  fmt::print("{}", step_table(step, lanes.models));
  if (flags.step_json.empty()) return {};
  return runtime::write_file(flags.step_json, step_json(step, lanes.models));
}

/// Gives Google Benchmark its flags, but no file: it would leave half of one when it cannot go on.
void initialise_google(std::span<const CLI::Option* const> options) {
  static char program[] = "moebench";  // the library keeps the address
  std::vector<std::string> words = {"--benchmark_out=/dev/null"};
  for (const CLI::Option* option : options)
    if (option->count() > 0)
      words.push_back(fmt::format("{}={}", option->get_name(), option->as<std::string>()));
  std::vector<char*> arguments = {program};
  for (std::string& word : words) arguments.push_back(word.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
}

/// Hands everything to another reporter, whose streams the library then does not replace, and swallows what
/// it says itself: that no row matches.
class Reporter final : public benchmark::BenchmarkReporter {
 public:
  explicit Reporter(benchmark::BenchmarkReporter& to) : to_(to) { SetErrorStream(&nowhere_); }
  bool ReportContext(const Context& context) override { return to_.ReportContext(context); }
  void ReportRuns(const std::vector<Run>& runs) override { to_.ReportRuns(runs); }
  void Finalize() override { to_.Finalize(); }

 private:
  std::ostream nowhere_{nullptr};
  benchmark::BenchmarkReporter& to_;
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // CSVReporter

std::unique_ptr<benchmark::BenchmarkReporter> reporter_into(std::ostream& text, const std::string& format) {
  std::unique_ptr<benchmark::BenchmarkReporter> reporter;
  if (format == "json") {
    reporter = std::make_unique<benchmark::JSONReporter>();
  } else if (format == "csv") {
    reporter = std::make_unique<benchmark::CSVReporter>();
  } else {
    reporter = std::make_unique<benchmark::ConsoleReporter>(benchmark::ConsoleReporter::OO_None);
  }
  reporter->SetOutputStream(&text);
  reporter->SetErrorStream(&text);
  return reporter;
}

#pragma GCC diagnostic pop

Status run(const Flags& flags) {
  if (!flags.step.empty()) {
    for (const CLI::Option* option : flags.of_rows)
      if (option->count() > 0) return input_error(option->get_name() + " is for rows, not for --step");
    return print_step_table(flags);
  }
  initialise_google(flags.of_google);
  if (!flags.recipe.first_flag().empty())
    return input_error(fmt::format("{} is for --step SPEC", flags.recipe.first_flag()));
  if (!flags.routing.empty()) return input_error("--routing is for --step PLAN|SPEC");
  if (!flags.step_json.empty()) return input_error("--step-json is for --step PLAN|SPEC");
  MOEC_ASSIGN_OR_RETURN(const Examples examples, load_examples(flags));
  MOEC_ASSIGN_OR_RETURN(const Lanes lanes, open_lanes(flags));
  benchmark::AddCustomContext("best of " + lanes.table.name(), lanes.table.best());
  if (lanes.models.name() != lanes.table.name())
    benchmark::AddCustomContext("best of " + lanes.models.name(), lanes.models.best());
  if (!examples.left_out.empty())
    benchmark::AddCustomContext(fmt::format("needs more than --memory={}", flags.memory_gib),
                                fmt::format("{}", fmt::join(examples.left_out, ", ")));
  Rows rows;
  add_table_rows(rows, lanes.table);
  add_kernel_rows(rows, examples.whole, lanes.models);
  add_kernel_rows(rows, examples.one_of_each_block, lanes.models);
  for (const Model& model : examples.whole) add_step_row(rows, model, lanes.models);
  std::ostringstream text;
  const auto writer = reporter_into(text, flags.out_format);
  Reporter display(*benchmark::CreateDefaultDisplayReporter()), file(*writer);
  if (benchmark::RunSpecifiedBenchmarks(&display, &file) == 0)
    return input_error("no row matches --benchmark_filter");
  if (!flags.out.empty() && !text.view().empty())
    MOEC_RETURN_IF_ERROR(runtime::write_file(flags.out, text.view()));
  if (rows.failed() > 0) return failure(fmt::format("{} rows failed", rows.failed()));
  return {};
}

/// Accepts what Google Benchmark can compile.
CLI::Validator row_filter() {
  return {[](const std::string& text) -> std::string {
            try {
              const std::regex compiled(text, std::regex::extended);
              return "";
            } catch (const std::regex_error&) {
              return fmt::format("'{}' is not a regular expression", text);
            }
          },
          ""};
}

/// Accepts anything but an empty text.
CLI::Validator some_text() {
  return {[](const std::string& text) { return text.empty() ? "needs a value" : ""; }, ""};
}

/// Accepts a path to which a file can be written.
CLI::Validator writable_file() {
  return {[](const std::string& path) -> std::string {
            if (path.empty()) return "needs a value";
            const Status status = runtime::AtomicFile::create(path).status();
            return status.ok() ? "" : status.error().message;
          },
          ""};
}

/// Accepts what Google Benchmark splits at commas and equal signs.
CLI::Validator key_values() {
  return {[](const std::string& text) -> std::string {
            static const std::regex form("[^=,]+=[^=,]*(,[^=,]+=[^=,]*)*");
            return std::regex_match(text, form) ? "" : fmt::format("'{}' is not KEY=VALUE,...", text);
          },
          ""};
}

/// Declared here, too, since Google Benchmark ends the program with exit code 0 for a wrong value.
void add_google_flags(CLI::App& app, Flags& flags) {
  constexpr const char* kGroup = "Flags of Google Benchmark";
  const auto add = [&](const char* name, const char* type, const std::string& help) {
    CLI::Option* const option = app.add_option(name, help)->type_name(type)->group(kGroup);
    flags.of_google.push_back(option);
    return option;
  };
  const auto add_flag = [&](const char* name, const std::string& help) {
    flags.of_google.push_back(
        app.add_flag(name, help)->check(tools::one_of({"true", "false"}))->group(kGroup));
  };
  const auto format = tools::one_of({"console", "json", "csv"});
  const auto seconds = tools::number<double>(0, 86400);
  add("--benchmark_filter", "REGEX", "Rows to run; -REGEX: all others")->check(row_filter());
  add_flag("--benchmark_list_tests", "Print the names of the rows, and run none");
  add("--benchmark_min_time", "SECONDS", "Least time of a row")->check(seconds);
  add("--benchmark_min_warmup_time", "SECONDS", "Least time before it")->check(seconds);
  add("--benchmark_repetitions", "N", "Runs of a row")->check(tools::number<int>(1));
  add_flag("--benchmark_enable_random_interleaving", "Repetitions of different rows take turns");
  add_flag("--benchmark_report_aggregates_only", "Of repetitions only mean, median and deviation");
  add_flag("--benchmark_display_aggregates_only", "The same, but for --benchmark_out");
  add("--benchmark_format", "console|json|csv", "Form of the output")->check(format);
  CLI::Option* const out = app.add_option("--benchmark_out", flags.out, "Write the results to a file, too")
                               ->check(writable_file())
                               ->type_name("FILE")
                               ->group(kGroup);
  CLI::Option* const out_format =
      app.add_option("--benchmark_out_format", flags.out_format, "Form of that file")
          ->check(format)
          ->needs(out)
          ->type_name("json|console|csv")
          ->group(kGroup);
  flags.of_rows.insert(flags.of_rows.end(), {out, out_format});
  add("--benchmark_color", "auto|true|false", "Colours")->check(tools::one_of({"auto", "true", "false"}));
  add_flag("--benchmark_counters_tabular", "Counters as columns of a table");
  add("--benchmark_context", "KEY=VALUE,...", "More lines of the header")->check(key_values());
  add("--benchmark_time_unit", "ns|us|ms|s", "Unit of times")->check(tools::one_of({"ns", "us", "ms", "s"}));
  flags.of_rows.insert(flags.of_rows.end(), flags.of_google.begin(), flags.of_google.end());
}

void describe(CLI::App& app, Flags& flags) {
  tools::describe_tool(app, "moebench", "Times kernels and whole steps against what the machine can do.");
  app.add_option("--device", flags.device,
                 "Where rows run (default: cpu; auto is the GPU where there is one)")
      ->check(tools::one_of({"auto", "cpu", "cuda"}))
      ->type_name("auto|cpu|cuda");
  app.add_option("--threads", flags.threads, "CPU threads of kernel and step rows (default: all cores)")
      ->check(tools::number<int>(1, 4096))
      ->type_name("N");
  flags.of_rows.push_back(
      app.add_option("--memory", flags.memory_gib,
                     "GiB that a model may take (default: 1): a larger one has kernel rows of one of each "
                     "repeated block if that fits, and no step row")
          ->check(tools::number<double>(0, 1 << 20))
          ->type_name("GIB"));
  app.add_option("--step", flags.step, "Print where the time of a step of this model goes, and no rows")
      ->check(some_text())
      ->type_name("PLAN|SPEC");
  app.add_option("--step-json", flags.step_json,
                 "File for the figures of --step, with the kernels' times by shape")
      ->check(writable_file())
      ->type_name("FILE");
  app.add_option("--routing", flags.routing,
                 "With --step: what every expert gets is forced to be this; several are set side by side")
      ->check(tools::one_of(kRoutingNames))
      ->expected(1, static_cast<int>(kRoutingNames.size()))
      ->type_name("balanced|skewed|degenerate");
  flags.of_rows.push_back(
      app.add_option("--examples", flags.examples, "Folder of the model specs (default: schema/examples)")
          ->type_name("DIR"));
  flags.recipe.add_to(app);
  add_google_flags(app, flags);
  app.footer(
      "Rows: table/..., kernel/..., variant/..., step/...\n\n"
      "Exit codes: 0 done, 1 failed, 2 wrong use or input.");
}

}  // namespace
}  // namespace moec::bench

int main(int argc, char** argv) {
  using namespace moec;
  bench::Flags flags;
  CLI::App app;
  bench::describe(app, flags);
  const tools::Command commands[] = {{&app, [&] { return bench::run(flags); }}};
  return tools::run_tool(app, argc, argv, commands);
}
