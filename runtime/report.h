// What a training run tells: rows for people and for the JSONL log.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "runtime/session.h"

namespace moec::runtime {

/// A logged step. Times are means over the steps since the last row.
struct StepReport {
  int64_t step = 0;      // steps done, counting from 1
  bool skipped = false;  // its gradient was not finite, and nothing was updated
  int64_t max_steps = 0;
  StepMetrics metrics;
  double milliseconds = 0;
  double tokens_per_second = 0;
  std::optional<double> mfu;  // achieved / peak FLOP/s, where a peak is known
};

/// "step   12/1000 | loss 4.1234 | norm 1.234 | lr 3.00e-04 | 123.4 ms | 41.2% MFU | 12345 tok/s", and
/// "| skipped, the gradient is not finite" where it was.
std::string format_row(const StepReport& report);

/// One line of the log without its line feed; numbers that are not finite become null.
nlohmann::json to_json(const StepReport& report);

}  // namespace moec::runtime
