#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <optional>

#include "planner/validate_overlaps.h"
#include "planner/validate_parts.h"

namespace moec::planner {
namespace {

/// Who wrote a stretch of bytes last.
struct Writer {
  int tensor = -1;  // -1: workspace, whose contents nobody may read
  uint32_t instruction = 0;
  uint32_t version = 0;
};

/// The bytes of one arena that a program has written so far, as disjoint stretches.
class Contents {
 public:
  /// Marks [begin, end) as written; returns the highest version overwritten.
  uint32_t write(uint64_t begin, uint64_t end, const Writer& writer) {
    if (begin == end) return 0;
    uint32_t version = 0;
    split(begin);
    split(end);
    const auto from = stretches_.lower_bound(begin), to = stretches_.lower_bound(end);
    for (auto it = from; it != to; ++it) version = std::max(version, it->second.writer.version);
    stretches_.erase(from, to);
    stretches_.emplace(begin, Stretch{.end = end, .writer = writer});
    return version;
  }

  /// The first writer in [begin, end) other than `tensor`.
  std::optional<Writer> other_writer(uint64_t begin, uint64_t end, int tensor) const {
    auto it = stretches_.upper_bound(begin);
    if (it != stretches_.begin() && std::prev(it)->second.end > begin) --it;
    for (; it != stretches_.end() && it->first < end; ++it)
      if (it->second.writer.tensor != tensor) return it->second.writer;
    return std::nullopt;
  }

 private:
  struct Stretch {
    uint64_t end = 0;
    Writer writer;
  };

  /// Makes `at` a border between stretches where it lies inside one.
  void split(uint64_t at) {
    const auto next = stretches_.upper_bound(at);
    if (next == stretches_.begin()) return;
    const auto it = std::prev(next);
    if (it->first == at || it->second.end <= at) return;
    stretches_.emplace_hint(next, at, it->second);
    it->second.end = at;
  }

  std::map<uint64_t, Stretch> stretches_;  // by begin
};

/// First and last instruction that names a buffer; first > last for none.
struct Use {
  uint32_t first = 1, last = 0;
  bool any() const { return first <= last; }
  void at(uint32_t instruction) {
    if (!any()) first = instruction;
    last = instruction;
  }
};

/// Executes one program on the contents of the arenas.
class Walk {
 public:
  Walk(const CheckedPlan& checked, Faults& faults, int program, std::vector<Use>& uses)
      : checked_(checked),
        faults_(faults),
        program_(program),
        uses_(uses),
        written_(checked.tensors.size(), false) {}

  void run() {
    const auto* instructions = checked_.program(program_).instructions();
    for (uint32_t i = 0; i < length(instructions); ++i) visit(i, *instructions->Get(i));
    if (length(instructions) > 0) hand_over(length(instructions) - 1);
  }

 private:
  void visit(uint32_t i, const fb::Instruction& instruction) {
    const auto where = [&] { return describe(checked_, program_, i); };
    for (uint32_t k = 0; k < length(instruction.inputs()); ++k)
      if (const int id = instruction.inputs()->Get(k); id != -1) read(i, id, where);
    if (const int id = instruction.workspace(); id != -1) {
      use(i, id);
      const Extent& extent = checked_.tensors[id].extent;
      contents(extent).write(extent.begin, extent.end, {.tensor = -1, .instruction = i, .version = 0});
    }
    for (uint32_t k = 0; k < length(instruction.outputs()); ++k)
      if (const int id = instruction.outputs()->Get(k); id != -1) write(i, id, where);
    if (const auto squared = squared_gradient(checked_, instruction)) squared_.push_back(*squared);
  }

  /// `where` names the reader; it is called only to report a fault.
  template <class Where>
  void read(uint32_t i, int id, const Where& where) {
    use(i, id);
    const TensorFacts& facts = checked_.tensors[id];
    const fb::Tensor& tensor = checked_.tensor(id);
    const bool from_start = facts.program == -1 && tensor.version() == 0;
    if (!from_start && !written_[id]) {
      faults_.add("{}: reads {} before it is written", where(), quoted(tensor.name()));
      return;
    }
    if (facts.extent.empty()) return;
    // Bytes that nobody has written hold version 0; those of a written tensor all have a writer.
    const int expected = from_start ? kNobody : id;
    const Extent& extent = facts.extent;
    if (const auto other = contents(extent).other_writer(extent.begin, extent.end, expected))
      faults_.add("{}: reads {} but its bytes were overwritten by instruction {}", where(),
                  quoted(tensor.name()), other->instruction);
  }

  template <class Where>
  void write(uint32_t i, int id, const Where& where) {
    use(i, id);
    const fb::Tensor& tensor = checked_.tensor(id);
    const TensorFacts& facts = checked_.tensors[id];
    if (written_[id]) faults_.add("{}: writes {} a second time", where(), quoted(tensor.name()));
    written_[id] = true;
    const Extent& extent = facts.extent;
    const uint32_t before = contents(extent).write(
        extent.begin, extent.end, {.tensor = id, .instruction = i, .version = tensor.version()});
    if (facts.program == -1 && !extent.empty() && tensor.version() - 1 != before)
      faults_.add("{}: writes version {} of {} over version {}", where(), tensor.version(),
                  quoted(tensor.name()), before);
  }

  /// What the program leaves for the host, or for grad_norm in place of a gradient, must be there at its end.
  void hand_over(uint32_t last) {
    const std::string program = program_name(checked_.program(program_).kind());
    const auto norm = [&] { return program + ": grad_norm"; };
    for (const SquaredGradient& squared : squared_)
      for (const int id : {squared.gradient, squared.sums}) read(last, id, norm);
    const fb::Interface* io = checked_.plan.io();
    if (!io) return;
    const auto host = [&] { return program + ": the host"; };
    for (int id : {io->train_state(), io->metrics(), io->logits()})
      if (id != -1 && written_[id]) read(last, id, host);
  }

  void use(uint32_t i, int id) { uses_[checked_.tensor(id).buffer()].at(i); }
  Contents& contents(const Extent& extent) { return contents_[static_cast<size_t>(extent.arena)]; }

  static constexpr int kNobody = -2;

  const CheckedPlan& checked_;
  Faults& faults_;
  int program_;
  std::vector<Use>& uses_;
  std::vector<bool> written_;
  std::vector<SquaredGradient> squared_;
  std::array<Contents, static_cast<size_t>(fb::ArenaKind::MAX) + 1> contents_;
};

/// Adds a fault for each transient buffer of the program that is placed over another live one. Returns the
/// largest sum of live bytes.
uint64_t check_overlaps(const fb::Plan& plan, int program, const std::vector<Use>& uses, Faults& faults) {
  std::vector<PlacedBuffer> placed;
  std::vector<const flatbuffers::String*> names;
  for (uint32_t b = 0; b < length(plan.buffers()); ++b) {
    const fb::Buffer& buffer = *plan.buffers()->Get(b);
    if (buffer.program() != program || !uses[b].any()) continue;
    placed.push_back({buffer.offset(), buffer.size(), uses[b].first, uses[b].last});
    names.push_back(buffer.name());
  }
  const Overlaps overlaps = find_overlaps(placed, kArenaAlignment);
  for (const auto& [above, below] : overlaps.pairs)
    faults.add("buffer {}: shares bytes with {} while both are live", quoted(names[above]),
               quoted(names[below]));
  return overlaps.most_live_bytes;
}

void check_lifetimes(const fb::Plan& plan, const std::vector<Use>& uses, Faults& faults) {
  for (uint32_t b = 0; b < length(plan.buffers()); ++b) {
    const fb::Buffer& buffer = *plan.buffers()->Get(b);
    if (buffer.program() == -1) continue;
    if (!uses[b].any())
      faults.add("buffer {}: no instruction uses it", quoted(buffer.name()));
    else if (buffer.first() != uses[b].first || buffer.last() != uses[b].last)
      faults.add("buffer {}: stated to live {}..{}, used {}..{}", quoted(buffer.name()), buffer.first(),
                 buffer.last(), uses[b].first, uses[b].last);
  }
}

}  // namespace

void check_memory(const CheckedPlan& checked, Faults& faults) {
  const fb::Plan& plan = checked.plan;
  std::vector<Use> uses(length(plan.buffers()));
  for (int p = 0; p < checked.programs(); ++p) Walk(checked, faults, p, uses).run();
  check_lifetimes(plan, uses, faults);
  uint64_t lower_bound = 0;
  for (int p = 0; p < checked.programs(); ++p)
    lower_bound = std::max(lower_bound, check_overlaps(plan, p, uses, faults));
  if (plan.activations_lower_bound() != lower_bound)
    faults.add("activations_lower_bound is {}, the live bytes reach {}", plan.activations_lower_bound(),
               lower_bound);
}

}  // namespace moec::planner
