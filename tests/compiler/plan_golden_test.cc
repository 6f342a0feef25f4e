// The plans of all examples as text, against tests/golden/plans: a change of memory or cost shows as a diff.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "tools/plan_stats.h"
#include "tools/units.h"

namespace moec::test {
namespace {

namespace fs = std::filesystem;
using tools::with_commas;

constexpr size_t kBuffersShown = 8;
/// Set to 1, the goldens are written instead of compared.
constexpr const char* kRefresh = "MOEC_REFRESH_GOLDENS";

struct Work {
  size_t calls = 0;
  uint64_t flops = 0, bytes = 0;

  void add(const fb::InstructionT& instruction) {
    ++calls;
    flops += instruction.flops;
    bytes += instruction.bytes;
  }
};

std::string row(const std::string& name, const Work& work) {
  return fmt::format("  {:<32} {:>6} {:>26} {:>22}\n", name, work.calls, with_commas(work.flops),
                     with_commas(work.bytes));
}

std::string work_table(const fb::ProgramT& program) {
  std::map<std::string, Work> by_kernel;
  Work all;
  for (const auto& instruction : program.instructions) {
    by_kernel[instruction->kernel].add(*instruction);
    all.add(*instruction);
  }
  std::string text = fmt::format("  {:<32} {:>6} {:>26} {:>22}\n", "kernel", "calls", "FLOPs", "bytes");
  for (const auto& [kernel, work] : by_kernel) text += row(kernel, work);
  return text + row("all", all);
}

std::string memory_table(const fb::ProgramT& program, const tools::ProgramMemory& memory) {
  if (memory.live_peak == 0) return "  nothing in the activation arena\n";
  const fb::InstructionT& peak = *program.instructions[memory.peak_instruction];
  std::string text = fmt::format("  arena {} bytes, lower bound {}, peak at instruction {}: {} ({})\n",
                                 with_commas(memory.arena_peak), with_commas(memory.live_peak),
                                 memory.peak_instruction, peak.label, peak.kernel);
  for (size_t i = 0; i < std::min(kBuffersShown, memory.live_at_peak.size()); ++i) {
    const fb::BufferT& buffer = *memory.live_at_peak[i];
    text += fmt::format("  {:>20}  {:<9} {:>6}-{:<6} {}\n", with_commas(buffer.size),
                        fb::EnumNameBufferKind(buffer.kind), buffer.first, buffer.last, buffer.name);
  }
  return text;
}

/// Everything that a plan decides about memory and work; nothing that depends on the machine.
std::string summary(const fb::PlanT& plan) {
  std::string text = fmt::format("{}: {} parameters, {} active\n", plan.model->name,
                                 with_commas(plan.total_parameters), with_commas(plan.active_parameters));
  for (const auto& arena : plan.arenas)
    text += fmt::format("arena {:<16} {:>22} bytes\n", fb::EnumNameArenaKind(arena->kind),
                        with_commas(arena->size));
  for (size_t i = 0; i < plan.programs.size(); ++i) {
    const fb::ProgramT& program = *plan.programs[i];
    text += fmt::format("\n{}\n", fb::EnumNameProgramKind(program.kind));
    text += memory_table(program, tools::program_memory(plan, i)) + work_table(program);
  }
  return text;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// Lines only in `a` with '-', lines only in `b` with '+', by a longest common subsequence, under the last
/// common line before them that starts at the left.
std::string difference(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<std::vector<size_t>> common(a.size() + 1, std::vector<size_t>(b.size() + 1, 0));
  for (size_t i = a.size(); i-- > 0;)
    for (size_t j = b.size(); j-- > 0;)
      common[i][j] = a[i] == b[j] ? common[i + 1][j + 1] + 1 : std::max(common[i + 1][j], common[i][j + 1]);
  std::string text, heading;
  const auto add = [&](char sign, const std::string& line) {
    if (!heading.empty()) text += fmt::format("  {}\n", heading);
    heading.clear();
    text += fmt::format("{} {}\n", sign, line);
  };
  for (size_t i = 0, j = 0; i < a.size() || j < b.size();) {
    if (i < a.size() && j < b.size() && a[i] == b[j]) {
      if (!a[i].empty() && a[i][0] != ' ') heading = a[i];
      ++i, ++j;
    } else if (j == b.size() || (i < a.size() && common[i + 1][j] >= common[i][j + 1])) {
      add('-', a[i++]);
    } else {
      add('+', b[j++]);
    }
  }
  return text;
}

std::string read_file(const fs::path& path) {
  std::ostringstream content;
  content << std::ifstream(path).rdbuf();
  return content.str();
}

std::vector<fs::path> examples() {
  std::vector<fs::path> specs;
  for (const auto& entry : fs::directory_iterator(fs::path(MOEC_SOURCE_DIR) / "schema/examples"))
    if (entry.path().extension() == ".json") specs.push_back(entry.path());
  std::ranges::sort(specs);
  return specs;
}

}  // namespace

TEST_CASE("golden plans: the examples compile to what tests/golden/plans says") {
  const fs::path folder = fs::path(MOEC_SOURCE_DIR) / "tests/golden/plans";
  const char* refresh = std::getenv(kRefresh);
  const bool refreshing = refresh && std::string(refresh) == "1";
  for (const fs::path& spec : examples()) {
    const fs::path golden = folder / (spec.stem().string() + ".txt");
    const std::string compiled = summary(compile(read_model(spec.string())));
    if (refreshing) {
      fs::create_directories(folder);
      std::ofstream(golden) << compiled;
    }
    const std::string expected = read_file(golden);
    const bool as_before = compiled == expected;
    CHECK_MESSAGE(
        as_before,
        fmt::format("{} differs from {}; if that is meant: {}=1 test_compiler -tc='golden plans*'\n{}",
                    spec.filename().string(), golden.string(), kRefresh,
                    difference(lines_of(expected), lines_of(compiled))));
  }
}

TEST_CASE("golden plans: a difference shows its lines and the headings around it") {
  CHECK(difference({"A", " 1", " 2", "B", " 3"}, {"A", " 1", " 4", "B", " 3", " 5"}) ==
        "  A\n-  2\n+  4\n  B\n+  5\n");
  CHECK(difference({}, {}).empty());
}

}  // namespace moec::test
