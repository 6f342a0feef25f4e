#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <utility>

#include "runtime/generate.h"
#include "runtime/run_dir.h"
#include "tools/commands.h"
#include "tools/terminal.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

struct GenerateFlags {
  std::string run_dir;
  std::string prompt;
  runtime::GenerateOptions options;
  DeviceFlags device;
};

/// Prints the prompt and what follows it, token by token: filtered on a terminal, byte for byte elsewhere.
Status generate(const GenerateFlags& flags) {
  MOEC_RETURN_IF_ERROR(runtime::read_run_config(flags.run_dir).status());  // before the device is asked
  MOEC_ASSIGN_OR_RETURN(const auto plan, runtime::load_run_plan(flags.run_dir));
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, open_session(plan, flags.device));
  MOEC_ASSIGN_OR_RETURN(const runtime::RunConfig config,
                        runtime::load_current_parameters(flags.run_dir, session));

  const bool terminal = is_terminal(stdout);
  TextFilter filter;
  const auto show = [&](std::string_view text) {
    const std::string shown = terminal ? filter.feed(text) : std::string(text);
    std::fwrite(shown.data(), 1, shown.size(), stdout);
    return std::fflush(stdout) == 0;
  };
  bool started = false;
  int64_t tokens = 0;
  const auto start = std::chrono::steady_clock::now();
  const Status status = runtime::generate(session, *config.tokenizer, flags.prompt, flags.options,
                                          [&](int32_t, std::string_view text) {
                                            if (!std::exchange(started, true)) show(flags.prompt);
                                            ++tokens;
                                            return show(text);
                                          });
  if (started) show(terminal ? filter.finish() + "\n" : "\n");
  MOEC_RETURN_IF_ERROR(status);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const std::string note =
      fmt::format("{} tokens in {}, {:.0f} tok/s", tokens, duration_text(elapsed.count()),
                  static_cast<double>(tokens) / elapsed.count());
  if (terminal && is_terminal(stderr)) fmt::print(stderr, "{}\n", Paint(stderr).dim(note));
  return {};
}

constexpr const char* kExamples = R"(Examples:
  moerun generate run --prompt "Dorothy " --max-tokens 200 --temp 0.8 --top-k 40
  moerun generate run --prompt "int main(" --temp 0    the most likely token every time)";

}  // namespace

Command generate_command(CLI::App& app) {
  CLI::App* command = add_command(app, "generate", "Continue a text with a run's model");
  auto flags = std::make_shared<GenerateFlags>();
  runtime::SamplerOptions& sampler = flags->options.sampler;
  command->add_option("RUN_DIR", flags->run_dir, "Run directory of a training")->required();
  command->add_option("--prompt", flags->prompt, "Text to continue")->required()->type_name("TEXT");
  command->add_option("--max-tokens", flags->options.max_tokens, "Tokens to generate (default: 256)")
      ->check(number<int64_t>(0))
      ->type_name("N");
  command->add_option("--temp", sampler.temperature, "Temperature, 0 for the most likely token (default: 1)")
      ->check(number<double>(0))
      ->type_name("T");
  command->add_option("--top-k", sampler.top_k, "Draw from the K most likely tokens, 0 for all (default: 0)")
      ->check(number<int32_t>(0))
      ->type_name("K");
  command
      ->add_option("--top-p", sampler.top_p,
                   "Draw from the fewest tokens that reach this probability (default: 1)")
      ->check(number<double>(0, 1))
      ->type_name("P");
  command->add_option("--seed", sampler.seed, "The same seed draws the same text (default: 0)")
      ->check(number<uint64_t>(0))
      ->type_name("S");
  add_device_flags(*command, flags->device);
  command->footer(kExamples);
  return {command, [flags] { return generate(*flags); }};
}

}  // namespace moec::tools
