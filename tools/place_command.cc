#include "tools/place_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

#include "planner/place.h"
#include "planner/validate_overlaps.h"
#include "runtime/file_io.h"
#include "tools/place_csv.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

using planner::Verdict;

/// About ten seconds on one core.
constexpr uint64_t kMostWork = 8'000'000'000;

struct PlaceFlags {
  std::string csv;
  uint64_t capacity = 0;
  std::string output;  // stdout when empty
};

/// An error unless the independent checker agrees with the placement.
Status check(const PlacementProblem& problem, const planner::Offsets& placed) {
  std::vector<planner::PlacedBuffer> buffers;
  uint64_t peak = 0;
  for (size_t i = 0; i < problem.buffers.size(); ++i) {
    const auto& [size, first, last] = problem.buffers[i];
    buffers.push_back({placed.offsets[i], size, first, last});
    peak = std::max(peak, placed.offsets[i] + size);
  }
  if (peak == placed.peak && planner::find_overlaps(buffers, 1).pairs.empty()) return {};
  return failure("the planner placed buffers over each other; please report this");
}

Status place(const PlaceFlags& flags) {
  MOEC_ASSIGN_OR_RETURN(const std::string text, runtime::read_file(flags.csv));
  MOEC_ASSIGN_OR_RETURN(const PlacementProblem problem, parse_placement_csv(text, flags.csv));
  const auto start = std::chrono::steady_clock::now();
  planner::Fit fit;
  try {
    fit = planner::place_within(problem.buffers, 1, flags.capacity, kMostWork);
  } catch (const std::invalid_argument& fault) {
    return input_error(fmt::format("{}: {}", flags.csv, fault.what()));
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const uint64_t bound = planner::live_bytes_lower_bound(problem.buffers, 1);
  MOEC_RETURN_IF_ERROR(check(problem, fit.placed));
  const std::string effort =
      fmt::format("{}, {} nodes", duration_text(elapsed.count()), with_commas(fit.nodes));
  if (fit.verdict != Verdict::kPlaced)
    return failure(fmt::format(
        "{}: {} within {} B ({}); peak of the best placement found {} B, lower bound {} B", flags.csv,
        fit.verdict == Verdict::kImpossible ? "there is no placement" : "no placement found",
        with_commas(flags.capacity), effort, with_commas(fit.placed.peak), with_commas(bound)));
  const std::string placed = placement_csv(problem, fit.placed.offsets);
  if (flags.output.empty())
    fmt::print("{}", placed);
  else
    MOEC_RETURN_IF_ERROR(runtime::write_file(flags.output, placed));
  fmt::print(flags.output.empty() ? stderr : stdout,
             "{} buffers: peak {} B, lower bound {} B, {:.4f} x, {}{}\n", with_commas(problem.buffers.size()),
             with_commas(fit.placed.peak), with_commas(bound),
             bound ? static_cast<double>(fit.placed.peak) / static_cast<double>(bound) : 1.0,
             fit.placed.heuristic.empty() ? "" : fmt::format("by {} in ", fit.placed.heuristic), effort);
  return {};
}

constexpr const char* kFormat =
    R"(FILE.csv has the columns id, lower, upper and size: a buffer of `size` bytes that is live at the times
[lower, upper). The same rows come back with their offset. Exit code 1: no placement within the capacity.

Example:
  moec place A.1048576.csv --capacity 1048576 -o A.placed.csv)";

}  // namespace

Command place_command(CLI::App& app) {
  CLI::App* command = add_command(app, "place", "Give the buffers of a CSV file their offsets in an arena");
  auto flags = std::make_shared<PlaceFlags>();
  command->add_option("FILE.csv", flags->csv, "Buffers with sizes and lifetimes")->required();
  command->add_option("--capacity", flags->capacity, "Bytes of the arena")
      ->required()
      ->check(number<uint64_t>(0))
      ->type_name("BYTES");
  command->add_option("-o,--output", flags->output, "File to write (default: stdout)")->type_name("CSV");
  command->footer(kFormat);
  return {command, [flags] { return place(*flags); }};
}

}  // namespace moec::tools
