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
  row += fmt::format(" | {:.0f} tok/s", report.tokens_per_second);
  return report.skipped ? row + " | skipped, the gradient is not finite" : row;
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
  if (report.skipped) line["skipped"] = true;
  if (report.metrics.loss_scale > 0) line["loss_scale"] = report.metrics.loss_scale;
  if (report.mfu) line["mfu"] = *report.mfu;
  return line;
}

}  // namespace moec::runtime
