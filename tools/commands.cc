#include "tools/commands.h"

#include <utility>

#include "kernels/cpu/cpu_kernels.h"
#include "runtime/device.h"

namespace moec::tools {

Result<runtime::Session> open_session(std::shared_ptr<const runtime::LoadedPlan> plan, int threads) {
  cpu::set_threads(threads);
  return runtime::Session::create(std::move(plan), runtime::make_cpu_device());
}

void add_threads_flag(CLI::App& app, int& threads) {
  app.add_option("--threads", threads, "CPU threads (default: all cores); results do not depend on it")
      ->check(number<int>(1, 4096))
      ->type_name("N");
}

}  // namespace moec::tools
