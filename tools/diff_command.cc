#include "tools/diff_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "runtime/lockstep.h"
#include "runtime/session.h"
#include "tools/devices.h"

namespace moec::tools {
namespace {

using runtime::Comparison;

struct DiffFlags {
  std::string plan;
  std::string device_a = "cpu";
  std::string device_b = "cuda";
  int64_t steps = 1;
  uint64_t seed = 1;
  bool all = false;
};

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % static_cast<uint64_t>(vocab));
  return tokens;
}

/// Device a with weights, moments and data of a run of `steps` steps on random tokens.
Result<runtime::Session> warm_session(std::shared_ptr<const runtime::LoadedPlan> plan,
                                      const DiffFlags& flags) {
  MOEC_ASSIGN_OR_RETURN(auto device, make_device({.device = flags.device_a}));
  MOEC_ASSIGN_OR_RETURN(runtime::Session session,
                        runtime::Session::create(std::move(plan), std::move(device)));
  MOEC_RETURN_IF_ERROR(session.initialise(flags.seed, session.plan().plan.recipe->lr));
  const int64_t batch = session.batch_size() * session.seq_len();
  if (session.plan().plan.io->window >= 0) {
    const int64_t tokens = 4 * batch + 1;
    MOEC_RETURN_IF_ERROR(session.set_data(random_tokens(tokens, session.vocab_size(), flags.seed), {}));
  } else {
    MOEC_RETURN_IF_ERROR(session.write_batch(random_tokens(batch, session.vocab_size(), flags.seed),
                                             random_tokens(batch, session.vocab_size(), flags.seed + 1)));
  }
  for (int64_t step = 0; step < flags.steps; ++step) MOEC_RETURN_IF_ERROR(session.train_step());
  return session;
}

std::string place_text(const Comparison& c) {
  return fmt::format("{} instruction {} '{}' ({})", fb::EnumNameProgramKind(c.program), c.index,
                     c.instruction->label, c.instruction->kernel);
}

std::string difference_text(const Comparison& c, const DiffFlags& flags) {
  return fmt::format(
      "output '{}' differs by {:.3g}, {:.2g} of its largest value (tolerance {:.2g}), at element {}: "
      "{:.9g} on {}, {:.9g} on {}",
      c.output, c.absolute, c.relative, c.tolerance, c.element, c.a, flags.device_a, c.b, flags.device_b);
}

/// The comparisons of a run: the first that disagrees, and the worst of every kernel.
class Findings {
 public:
  explicit Findings(const DiffFlags& flags) : flags_(flags) {}

  Status add(const Comparison& comparison) {
    ++count_;
    const auto [worst, is_new] = worst_.try_emplace(comparison.instruction->kernel, comparison);
    if (!is_new && exceeds(comparison, worst->second)) worst->second = comparison;
    if (comparison.agrees()) return {};
    ++disagreeing_;
    const std::string found = place_text(comparison) + ": " + difference_text(comparison, flags_);
    if (!flags_.all) return failure(found);
    if (first_.empty()) first_ = found;
    return {};
  }

  /// Prints the summary; an error when anything disagreed.
  Status finish() const {
    if (flags_.all) print_worst();
    if (disagreeing_ == 0) {
      fmt::print("{} instructions agree on {} and {}\n", count_, flags_.device_a, flags_.device_b);
      return {};
    }
    return failure(fmt::format("{} of {} instructions differ; the first: {}", disagreeing_, count_, first_));
  }

 private:
  static bool exceeds(const Comparison& x, const Comparison& y) {
    return x.agrees() == y.agrees() ? x.relative > y.relative : !x.agrees();
  }

  void print_worst() const {
    fmt::print("{:<26} {:>9} {:>9} {:>9}  {}\n", "kernel", "absolute", "relative", "tolerance",
               "where it is worst");
    for (const auto& [kernel, c] : worst_)
      fmt::print("{:<26} {:>9.2g} {:>9.2g} {:>9.2g}  {}{}\n", kernel, c.absolute, c.relative, c.tolerance,
                 place_text(c), c.agrees() ? "" : "  DIFFERS");
  }

  const DiffFlags& flags_;
  size_t count_ = 0, disagreeing_ = 0;
  std::string first_;
  std::map<std::string, Comparison> worst_;
};

Status diff(const DiffFlags& flags) {
  MOEC_ASSIGN_OR_RETURN(const auto plan, runtime::load_plan(flags.plan));
  MOEC_ASSIGN_OR_RETURN(runtime::Session a, warm_session(plan, flags));
  MOEC_ASSIGN_OR_RETURN(const auto b, make_device({.device = flags.device_b}));
  MOEC_RETURN_IF_ERROR(b->load(plan));
  Findings findings(flags);
  std::vector<fb::ProgramKind> kinds;
  for (const auto& program : plan->plan.programs) kinds.push_back(program->kind);
  // The initialisation comes last, since it undoes the steps.
  std::stable_partition(kinds.begin(), kinds.end(), [](auto kind) { return kind != fb::ProgramKind::Init; });
  for (const fb::ProgramKind kind : kinds)
    MOEC_RETURN_IF_ERROR(
        runtime::run_lockstep(a.device(), *b, kind, [&](const Comparison& c) { return findings.add(c); }));
  return findings.finish();
}

constexpr const char* kExamples = R"(Examples:
  moec diff tiny.plan                      the CPU and the GPU
  moec diff tiny.plan --all --steps 10     the worst of every kernel, ten steps into a run

Every program of the plan is run on both devices instruction by instruction, each on the operands of device a.)";

}  // namespace

Command diff_command(CLI::App& app) {
  CLI::App* command =
      add_command(app, "diff", "Run two devices in lockstep; name the first instruction that differs");
  auto flags = std::make_shared<DiffFlags>();
  command->add_option("PLAN", flags->plan, "Plan file")->required();
  const auto device = [&](const char* name, std::string& value, const char* help) {
    command->add_option(name, value, help)->check(one_of({"cpu", "cuda"}))->type_name("cpu|cuda");
  };
  device("--device-a", flags->device_a, "The reference (default: cpu)");
  device("--device-b", flags->device_b, "Compared with it (default: cuda)");
  command
      ->add_option("--steps", flags->steps, "Training steps on device a before the comparison (default: 1)")
      ->check(number<int64_t>(1))
      ->type_name("N");
  command->add_option("--seed", flags->seed, "Of weights and tokens (default: 1)")
      ->check(number<uint64_t>(0))
      ->type_name("N");
  command->add_flag("--all", flags->all, "Do not stop at the first; list the worst of every kernel");
  command->footer(kExamples);
  return {command, [flags] { return diff(*flags); }};
}

}  // namespace moec::tools
