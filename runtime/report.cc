#include "runtime/report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace moec::runtime {

std::string format_row(const StepReport& report) {
  const std::string total = fmt::format("{}", report.max_steps);
  std::string row =
      fmt::format("step {:>{}}/{} | loss {:.4f} | norm {:.3f} | lr {:.2e}", report.step, total.size(), total,
                  report.metrics.loss, report.metrics.grad_norm, report.metrics.lr);
  if (report.metrics.loss_scale > 0) row += fmt::format(" | scale {:g}", report.metrics.loss_scale);
  row += fmt::format(" | {:.1f} ms", report.milliseconds);
  if (report.mfu) row += fmt::format(" | {:.1f}% MFU", 100 * *report.mfu);
  return row + fmt::format(" | {:.0f} tok/s", report.tokens_per_second);
}

std::string format_skip(const StepMetrics& metrics) {
  const std::string scale =
      metrics.loss_scale > 0 ? fmt::format(" at loss scale {:g}", metrics.loss_scale) : "";
  return fmt::format("step {} | skipped: its gradient is not finite{}", metrics.step + 1, scale);
}

nlohmann::json to_json(const StepReport& report) {
  nlohmann::json line = {{"step", report.step},
                         {"loss", report.metrics.loss},
                         {"aux_loss", report.metrics.aux_loss},
                         {"norm", report.metrics.grad_norm},
                         {"lr", report.metrics.lr},
                         {"skipped_steps", report.metrics.skipped_steps},
                         {"ms", report.milliseconds},
                         {"tokens_per_second", report.tokens_per_second}};
  if (report.metrics.loss_scale > 0) line["loss_scale"] = report.metrics.loss_scale;
  if (report.mfu) line["mfu"] = *report.mfu;
  return line;
}

}  // namespace moec::runtime
