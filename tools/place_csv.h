// Placement problems as the CSV files of the public benchmarks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/planner.h"
#include "runtime/status.h"

namespace moec::tools {

struct PlacementProblem {
  std::vector<planner::Lifetime> buffers;  // `first` and `last` count the different times of the file
  std::vector<std::string> rows;           // header and buffers, without an offset column
};

/// Reads a header that names the columns id, lower, upper and size in any order, and one row per buffer: live
/// at the times [lower, upper), of `size` bytes. A column `offset` is dropped. Input errors name `path` and
/// the line.
Result<PlacementProblem> parse_placement_csv(const std::string& text, const std::string& path);

/// The rows with the column `offset` behind the others.
std::string placement_csv(const PlacementProblem& problem, const std::vector<uint64_t>& offsets);

}  // namespace moec::tools
