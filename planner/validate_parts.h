// What the parts of the validator share. Each part may assume that the parts before it found no fault:
// tables, then calls, then the gradient norm, the start, and memory.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plan_generated.h"

namespace moec::planner {

/// Transient buffers start at multiples of this, and count as multiples of it in the lower bound.
constexpr uint64_t kArenaAlignment = 256;

/// The faults found, at most kMost of them: a broken plan need not be described to the end.
class Faults {
 public:
  static constexpr size_t kMost = 100;

  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    if (lines_.size() < kMost) lines_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  bool none() const { return lines_.empty(); }
  std::vector<std::string> take() { return std::move(lines_); }

 private:
  std::vector<std::string> lines_;
};

/// Bytes [begin, end) of an arena.
struct Extent {
  fb::ArenaKind arena = fb::ArenaKind::Params;
  uint64_t begin = 0, end = 0;

  bool empty() const { return begin == end; }
  bool operator==(const Extent&) const = default;
};

/// Whether two extents share a byte.
bool overlap(const Extent& a, const Extent& b);

/// What the plan's tables say about a tensor.
struct TensorFacts {
  Extent extent;
  uint64_t elements = 0;
  int program = -1;  // that owns its buffer; -1 for persistent ones

  uint64_t bytes() const { return extent.end - extent.begin; }
};

/// The plan, and its tensors by id once the tables are known to be sound.
struct CheckedPlan {
  const fb::Plan& plan;
  std::vector<TensorFacts> tensors;

  const fb::Tensor& tensor(int id) const { return *plan.tensors()->Get(static_cast<uint32_t>(id)); }
  const fb::Program& program(int p) const { return *plan.programs()->Get(static_cast<uint32_t>(p)); }
  int programs() const { return plan.programs() ? static_cast<int>(plan.programs()->size()) : 0; }
};

/// Length of a vector field that may be absent.
template <class Vector>
uint32_t length(const Vector* vector) {
  return vector ? vector->size() : 0;
}

inline bool is(const fb::Instruction& instruction, std::string_view kernel) {
  return instruction.kernel()->string_view() == kernel;
}

/// A name as messages show it: quoted, on one line, cut where it is unreasonably long.
std::string quoted(const flatbuffers::String* name);
std::string program_name(fb::ProgramKind kind);
/// "accumulate[12] rmsnorm (block.0.norm)".
std::string describe(const CheckedPlan& checked, int program, uint32_t instruction);

/// Arenas, buffers, tensors, program kinds, parameters and interface, each by itself and against what they
/// refer to. Fills `checked.tensors`.
void check_tables(CheckedPlan& checked, Faults& faults);

/// Every instruction against its row of the catalog: kernel, attributes, operands, workspace, which operands
/// share bytes, and which are the interface's.
void check_calls(const CheckedPlan& checked, Faults& faults);

/// Tensor ids of a gradient that outlives programs, and of the sums of its squares, by the kernel that wrote
/// both.
struct SquaredGradient {
  int gradient, sums;
};

/// What the instruction is that, nothing where it is another.
std::optional<SquaredGradient> squared_gradient(const CheckedPlan& checked,
                                                const fb::Instruction& instruction);

/// Whether grad_norm sums each gradient that adamw uses, and nothing else, once.
void check_gradient_norm(const CheckedPlan& checked, Faults& faults);

/// Whether there are parameters that Init writes, and each program finds what it reads written by Init, by
/// the host, or by a program that runs in turns with it. A plan of no model and no parameters is a fragment,
/// such as tests make of single kernels, and is not asked.
void check_start(const CheckedPlan& checked, Faults& faults);

/// Walks each program with a map from addresses to the tensors last written there, then compares lifetimes,
/// overlaps of live buffers and the lower bound with what the walk saw.
void check_memory(const CheckedPlan& checked, Faults& faults);

}  // namespace moec::planner
