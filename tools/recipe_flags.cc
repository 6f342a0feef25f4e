#include "tools/recipe_flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <utility>

#include "compiler/cost_model.h"
#include "compiler/error.h"
#include "compiler/frontend.h"
#include "runtime/file_io.h"
#include "tools/command_line.h"
#include "tools/measured_times.h"
#include "tools/shortage.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

constexpr const char* kGroup = "Recipe (what is not given is as the spec says)";

/// What a number flag shows in the help.
template <class T>
constexpr const char* type_name() {
  return std::is_integral_v<T> ? "N" : "X";
}

/// No value of a recipe is negative; what else is wrong with one, the compiler says.
template <class T>
CLI::Validator not_negative() {
  return number<T>(0, std::numeric_limits<T>::max());
}

/// What others call the types of numbers; any other word stays.
CLI::Validator number_type_names() {
  return {[](std::string& text) -> std::string {
            static const std::map<std::string, std::string> names = {
                {"fp16", "f16"}, {"float16", "f16"}, {"half", "f16"},    {"bfloat16", "bf16"},
                {"fp32", "f32"}, {"float32", "f32"}, {"float64", "f64"}, {"fp64", "f64"}};
            if (const auto name = names.find(text); name != names.end()) text = name->second;
            return "";
          },
          ""};
}

fb::LossScaleT& loss_scale(fb::RecipeT& recipe) {
  if (!recipe.loss_scale) recipe.loss_scale = std::make_unique<fb::LossScaleT>();
  return *recipe.loss_scale;
}

/// A flag that only some schedules read.
struct ScheduleFlag {
  const char* flag;
  bool (*read_by)(fb::ScheduleKind kind);
  const char* readers;
};

constexpr ScheduleFlag kScheduleFlags[] = {
    {"--min-lr-ratio", [](fb::ScheduleKind kind) { return kind != fb::ScheduleKind::Constant; },
     "linear, cosine or wsd"},
    {"--decay-steps", [](fb::ScheduleKind kind) { return kind == fb::ScheduleKind::Wsd; }, "wsd"}};

}  // namespace

template <class T>
void RecipeFlags::add(CLI::App& app, const std::string& name, const std::string& help,
                      void (*set)(fb::RecipeT&, T)) {
  const auto keep = [this, name, set](const T& value) {
    compile_flags_.push_back(name);
    changes_.push_back([set, value](fb::RecipeT& recipe) { set(recipe, value); });
  };
  app.add_option_function<T>(name, keep, help)
      ->check(not_negative<T>())
      ->type_name(type_name<T>())
      ->group(kGroup);
}

template <class T>
void RecipeFlags::add_enum(CLI::App& app, const std::string& name, const std::string& help,
                           std::vector<std::pair<std::string, T>> words, void (*set)(fb::RecipeT&, T)) {
  std::vector<std::string> choices;
  for (const auto& [word, value] : words) choices.push_back(word);
  const auto keep = [this, name, set, words](const std::string& text) {
    compile_flags_.push_back(name);
    for (const auto& [word, value] : words)
      if (word == text) changes_.push_back([set, v = value](fb::RecipeT& recipe) { set(recipe, v); });
  };
  app.add_option_function<std::string>(name, keep, help)
      ->transform(number_type_names())
      ->check(one_of(choices))
      ->type_name(fmt::format("{}", fmt::join(choices, "|")))
      ->group(kGroup);
}

void RecipeFlags::add_to(CLI::App& app, MemoryBudgetFlag memory_budget) {
  using R = fb::RecipeT;
  add<uint32_t>(app, "--batch-size", "Sequences per micro-batch", [](R& r, uint32_t v) { r.batch_size = v; });
  add<uint32_t>(app, "--seq-len", "Tokens per sequence", [](R& r, uint32_t v) { r.seq_len = v; });
  add<uint32_t>(app, "--grad-accum", "Micro-batches per step", [](R& r, uint32_t v) { r.grad_accum = v; });
  add_enum<fb::DType>(
      app, "--dtype", "Weights and activations",
      {{"f32", fb::DType::F32}, {"f64", fb::DType::F64}, {"bf16", fb::DType::BF16}, {"f16", fb::DType::F16}},
      [](R& r, fb::DType v) {
        r.dtype = v;
        if (v != fb::DType::F16) r.loss_scale.reset();
      });
  add_enum<bool>(app, "--grad-dtype", "Gradients of the weights, 'same' as the weights or f32",
                 {{"f32", false}, {"same", true}},
                 [](R& r, bool same) { r.grad_dtype = same ? r.dtype : fb::DType::F32; });
  add_enum<fb::DType>(app, "--moment-dtype", "AdamW's moments; bf16 is rounded stochastically",
                      {{"f32", fb::DType::F32}, {"bf16", fb::DType::BF16}},
                      [](R& r, fb::DType v) { r.moment_dtype = v; });
  add<double>(app, "--loss-scale", "f16: factor of the loss at first, which adapts itself",
              [](R& r, double v) { loss_scale(r).initial = v; });
  add<uint32_t>(app, "--loss-scale-interval", "f16: steps without overflow until the factor doubles",
                [](R& r, uint32_t v) { loss_scale(r).growth_interval = v; });
  app.add_option("--lr", lr_, "Peak learning rate")
      ->check(not_negative<float>())
      ->type_name("X")
      ->group(kGroup);
  add_enum<fb::ScheduleKind>(app, "--schedule", "Learning rate after the warm-up",
                             {{"constant", fb::ScheduleKind::Constant},
                              {"linear", fb::ScheduleKind::Linear},
                              {"cosine", fb::ScheduleKind::Cosine},
                              {"wsd", fb::ScheduleKind::Wsd}},
                             [](R& r, fb::ScheduleKind v) { r.schedule->kind = v; });
  add<uint32_t>(app, "--warmup-steps", "Steps of linear warm-up",
                [](R& r, uint32_t v) { r.schedule->warmup_steps = v; });
  add<uint32_t>(app, "--total-steps", "Steps of the whole schedule",
                [](R& r, uint32_t v) { r.schedule->total_steps = v; });
  add<float>(app, "--min-lr-ratio", "Final over peak learning rate",
             [](R& r, float v) { r.schedule->min_ratio = v; });
  add<uint32_t>(app, "--decay-steps", "Last steps, in which wsd decays",
                [](R& r, uint32_t v) { r.schedule->decay_steps = v; });
  add<float>(app, "--beta1", "AdamW: decay of the first moment", [](R& r, float v) { r.adamw->beta1 = v; });
  add<float>(app, "--beta2", "AdamW: decay of the second moment", [](R& r, float v) { r.adamw->beta2 = v; });
  add<float>(app, "--eps", "AdamW: added to the denominator", [](R& r, float v) { r.adamw->eps = v; });
  add<float>(app, "--weight-decay", "AdamW: decoupled decay",
             [](R& r, float v) { r.adamw->weight_decay = v; });
  add_enum<fb::WeightDecayScope>(
      app, "--weight-decay-scope", "What decays",
      {{"matrices", fb::WeightDecayScope::Matrices}, {"all", fb::WeightDecayScope::All}},
      [](R& r, fb::WeightDecayScope v) { r.weight_decay_scope = v; });
  add<float>(app, "--clip-norm", "Largest global gradient norm, 0 for no clipping",
             [](R& r, float v) { r.clip_norm = v; });
  add_enum<fb::Sampling>(app, "--sampling", "How batches are drawn",
                         {{"random", fb::Sampling::RandomOffset},
                          {"epoch", fb::Sampling::Epoch},
                          {"sequential", fb::Sampling::Sequential}},
                         [](R& r, fb::Sampling v) { r.sampling = v; });
  const auto keep_budget = [this](const std::string& text) {
    compile_flags_.push_back("--memory-budget");
    changes_.push_back([bytes = *parse_bytes(text)](R& r) { r.memory_budget = bytes; });
  };
  if (memory_budget == MemoryBudgetFlag::kOffered)
    app.add_option_function<std::string>(
           "--memory-budget", keep_budget,
           "Bytes that all arenas may take together, e.g. 139GiB: the fastest plan\n"
           "within them, which computes again in the backward pass what it cannot\n"
           "keep; without, nothing runs twice, and experts' activations are not kept")
        ->check(byte_size())
        ->type_name("BYTES")
        ->group(kGroup);
  app.add_option("--seed", seed_, "Key of every random stream")
      ->check(not_negative<uint64_t>())
      ->type_name("N")
      ->group(kGroup);
  const auto keep_window = [this](const int64_t& tokens) {
    compile_flags_.push_back("--window-tokens");
    window_tokens_ = tokens;
  };
  app.add_option_function<int64_t>("--window-tokens", keep_window,
                                   "Training tokens kept on the device at a time")
      ->check(number<int64_t>(1))
      ->type_name("N")
      ->group(kGroup);
  constexpr const char* kPrediction = "Predicted times";
  const auto keep_cost_model = [this](const std::string& device) {
    compile_flags_.push_back("--cost-model");
    cost_model_ = device;
  };
  app.add_option_function<std::string>(
         "--cost-model", keep_cost_model,
         "Device that times are predicted for, whatever this machine is (default: h200)")
      ->check(one_of(CostModel::devices()))
      ->type_name(fmt::format("{}", fmt::join(CostModel::devices(), "|")))
      ->group(kPrediction);
  const auto keep_measured = [this](const std::string& file) {
    compile_flags_.push_back("--measured");
    measured_ = file;
  };
  app.add_option_function<std::string>(
         "--measured", keep_measured,
         "Kernel times of that device, as moebench --benchmark_format=json writes them;\nthey replace "
         "predicted ones")
      ->type_name("FILE")
      ->group(kPrediction);
}

std::string RecipeFlags::first_flag() const {
  return !compile_flags_.empty() ? compile_flag() : lr_ ? "--lr" : seed_ ? "--seed" : "";
}

fb::ModelT RecipeFlags::read_spec(const std::string& path) const {
  fb::ModelT model = read_model(path);
  for (const auto& change : changes_) change(*model.recipe);
  if (lr_) model.recipe->lr = *lr_;
  if (seed_) model.recipe->seed = *seed_;
  for (const auto& [flag, read_by, readers] : kScheduleFlags)
    if (std::ranges::count(compile_flags_, flag) > 0 && !read_by(model.recipe->schedule->kind))
      compile_error("{}: {} is for --schedule {}", path, flag, readers);
  return model;
}

Result<CompileOptions> RecipeFlags::options(CompileOptions options) const {
  if (window_tokens_) options.window_tokens = *window_tokens_;
  if (!cost_model_.empty()) options.cost_model = cost_model_;
  if (!measured_.empty()) {
    MOEC_ASSIGN_OR_RETURN(options.measured_seconds, read_measured_times(measured_));
  }
  return options;
}

Result<fb::PlanT> RecipeFlags::compile_spec(const std::string& path, CompileOptions compile_options) const {
  const fb::ModelT model = read_spec(path);
  MOEC_ASSIGN_OR_RETURN(compile_options, options(std::move(compile_options)));
  try {
    return compile(model, compile_options);
  } catch (const MemoryError& e) {
    return shortage_failure(path, model, compile_options, e.shortage);
  } catch (const CompileError& e) {
    return input_error(fmt::format("{}: {}", path, e.what()));  // the compiler does not know the file
  }
}

Result<std::shared_ptr<const runtime::LoadedPlan>> open_plan_or_spec(const std::string& path,
                                                                     const RecipeFlags& flags) {
  MOEC_ASSIGN_OR_RETURN(std::string content, runtime::read_file(path));
  const size_t first = content.find_first_not_of(" \t\r\n");
  if (path.ends_with(".json") || (first != content.npos && content[first] == '{')) {
    MOEC_ASSIGN_OR_RETURN(const fb::PlanT plan, flags.compile_spec(path));
    const std::vector<uint8_t> bytes = serialize_plan(plan);
    return runtime::parse_plan(std::string(bytes.begin(), bytes.end()), path);
  }
  if (!flags.compile_flag().empty())
    return input_error(
        fmt::format("{} is compiled into a plan: give it to moec, or take a SPEC instead of {}",
                    flags.compile_flag(), path));
  return runtime::parse_plan(std::move(content), path);
}

}  // namespace moec::tools
