// moerun: trains, evaluates and samples the models of plans.
#include "tools/command_line.h"
#include "tools/commands.h"

int main(int argc, char** argv) {
  using namespace moec::tools;
  CLI::App app;
  describe_tool(app, "moerun", "Runs plans: training, evaluation, text generation; tunes them for a device.");
  app.require_subcommand(1);
  app.footer(
      "moerun COMMAND --help tells more.\n\nExit codes: 0 done, 1 failed or does not fit, 2 wrong use or "
      "input.");
  const Command commands[] = {train_command(app), eval_command(app), generate_command(app),
                              tune_command(app)};
  return run_tool(app, argc, argv, commands);
}
