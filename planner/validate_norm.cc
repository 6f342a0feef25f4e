#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>

#include "kernels/catalog.h"
#include "planner/validate_parts.h"

namespace moec::planner {
namespace {

bool inside(const Extent& part, const Extent& whole) {
  return part.arena == whole.arena && whole.begin <= part.begin && part.end <= whole.end;
}

/// The id at a place of an operand list, -1 where there is none.
int id_at(const flatbuffers::Vector<int32_t>* ids, int place) {
  return place < 0 ? -1 : ids->Get(static_cast<uint32_t>(place));
}

int input(const fb::Instruction& instruction, std::string_view name) {
  return id_at(instruction.inputs(), find_kernel(instruction.kernel()->string_view())->input_index(name));
}

int output(const fb::Instruction& instruction, std::string_view name) {
  return id_at(instruction.outputs(), find_kernel(instruction.kernel()->string_view())->output_index(name));
}

/// Where a place starts, in the order of arenas.
std::tuple<fb::ArenaKind, uint64_t> start(const Extent& place) { return {place.arena, place.begin}; }

/// Tensors by where they lie.
class Places {
 public:
  explicit Places(const CheckedPlan& checked) : checked_(checked) {}

  bool empty() const { return ids_.empty(); }
  const std::vector<int>& ids() const { return ids_; }

  void add(int id) {
    if (!extent(id).empty()) ids_.push_back(id);
  }

  /// Makes the tensors ready to be searched. Returns two that share bytes, where there are such.
  std::optional<std::pair<int, int>> sort() {
    std::ranges::sort(ids_, {}, [&](int id) { return start(extent(id)); });
    for (size_t i = 1; i < ids_.size(); ++i)
      if (overlap(extent(ids_[i - 1]), extent(ids_[i]))) return std::pair(ids_[i - 1], ids_[i]);
    return std::nullopt;
  }

  /// Of tensors that share no bytes the first that shares some with `place`, -1 for none.
  int touching(const Extent& place) const {
    const auto first = std::ranges::partition_point(
        ids_, [&](int id) { return std::tuple(extent(id).arena, extent(id).end) <= start(place); });
    return first != ids_.end() && overlap(extent(*first), place) ? *first : -1;
  }

  /// Whether one of the tensors has all of these bytes.
  bool hold(const Extent& place) const {
    const int id = touching(place);
    return id != -1 && inside(place, extent(id));
  }

 private:
  const Extent& extent(int id) const { return checked_.tensors[id].extent; }

  const CheckedPlan& checked_;
  std::vector<int> ids_;
};

/// What one program sums and uses.
class GradientNorm {
 public:
  GradientNorm(const CheckedPlan& checked, Faults& faults, int program)
      : checked_(checked), faults_(faults), program_(program), summed_(checked), used_(checked) {}

  /// `squares` are in the order of the places of their sums.
  void check(const std::vector<SquaredGradient>& squares) {
    const auto* instructions = checked_.program(program_).instructions();
    bool normed = false;
    for (uint32_t i = 0; i < length(instructions); ++i) {
      const fb::Instruction& instruction = *instructions->Get(i);
      if (is(instruction, "grad_norm")) add_norm(instruction, squares);
      normed |= is(instruction, "grad_norm");
      if (!is(instruction, "adamw")) continue;
      used_.add(input(instruction, "grad"));
      if (!normed) faults_.add("{}: no grad_norm in front of it", describe(checked_, program_, i));
    }
    if (used_.empty() && !normed) return;
    const auto twice_summed = summed_.sort(), twice_used = used_.sort();
    if (twice_summed) fault("grad_norm sums", *twice_summed);
    if (twice_used) fault("adamw uses", *twice_used);
    if (!twice_summed && !twice_used) compare();
  }

 private:
  std::string where() const { return program_name(checked_.program(program_).kind()); }
  std::string name(int id) const { return quoted(checked_.tensor(id).name()); }
  const Extent& extent(int id) const { return checked_.tensors[id].extent; }

  void fault(std::string_view what, const std::pair<int, int>& pair) {
    faults_.add("{}: {} {} and {}, which share bytes", where(), what, name(pair.first), name(pair.second));
  }

  void add_norm(const fb::Instruction& norm, const std::vector<SquaredGradient>& squares) {
    const auto first = static_cast<uint32_t>(find_kernel("grad_norm")->input_index("grads"));
    for (uint32_t k = first; k < length(norm.inputs()); ++k) summed_.add(norm.inputs()->Get(k));
    const int read = input(norm, "squares");
    if (read == -1) return;
    uint64_t bytes = 0;
    auto of = std::ranges::lower_bound(squares, start(extent(read)), {}, [&](const SquaredGradient& squared) {
      return start(extent(squared.sums));
    });
    for (; of != squares.end() && inside(extent(of->sums), extent(read)); ++of) {
      summed_.add(of->gradient);
      bytes += checked_.tensors[of->sums].bytes();
    }
    if (bytes != checked_.tensors[read].bytes())
      faults_.add("{}: grad_norm reads {}, which holds other things than sums of squares", where(),
                  name(read));
  }

  /// What is summed is used. Of what is used the gradients of parameters are summed; what lies between these
  /// is not looked at.
  void compare() {
    for (const int id : summed_.ids())
      if (!used_.hold(extent(id)))
        faults_.add("{}: grad_norm sums {}, which is no gradient that adamw uses", where(), name(id));
    for (uint32_t p = 0; p < length(checked_.plan.parameters()); ++p) {
      const int grad = checked_.plan.parameters()->Get(p)->grad();
      if (grad != -1 && used_.touching(extent(grad)) != -1 && !summed_.hold(extent(grad)))
        faults_.add("{}: grad_norm leaves out {}", where(), name(grad));
    }
  }

  const CheckedPlan& checked_;
  Faults& faults_;
  int program_;
  Places summed_, used_;
};

}  // namespace

std::optional<SquaredGradient> squared_gradient(const CheckedPlan& checked,
                                                const fb::Instruction& instruction) {
  const int gradient = output(instruction, "dweight"), sums = output(instruction, "squares");
  const auto stays = [&](int id) { return id != -1 && checked.tensors[id].program == -1; };
  return stays(gradient) && stays(sums) ? std::optional(SquaredGradient{gradient, sums}) : std::nullopt;
}

void check_gradient_norm(const CheckedPlan& checked, Faults& faults) {
  std::vector<SquaredGradient> squares;
  for (int p = 0; p < checked.programs(); ++p) {
    const auto* instructions = checked.program(p).instructions();
    for (uint32_t i = 0; i < length(instructions); ++i)
      if (const auto squared = squared_gradient(checked, *instructions->Get(i))) squares.push_back(*squared);
  }
  std::ranges::sort(squares, {},
                    [&](const SquaredGradient& of) { return start(checked.tensors[of.sums].extent); });
  for (int p = 0; p < checked.programs(); ++p) GradientNorm(checked, faults, p).check(squares);
}

}  // namespace moec::planner
