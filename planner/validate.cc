#include "planner/validate.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>

#include "kernels/kernel.h"
#include "kernels/train_state.h"
#include "planner/validate_parts.h"
#include "schema/rules.h"

namespace moec::planner {
namespace {

/// More than any machine addresses; sums and products of a few such counts stay far from wrapping.
constexpr uint64_t kMostBytes = uint64_t{1} << 48;
/// Of all instructions together; bounds the work on a file whose instructions share their operand lists.
constexpr uint64_t kMostOperands = uint64_t{1} << 22;

class Tables {
 public:
  Tables(CheckedPlan& checked, Faults& faults) : checked_(checked), plan_(checked.plan), faults_(faults) {}

  void check() {
    check_recipe();
    check_model();
    check_arenas();
    check_programs();
    for (uint32_t i = 0; i < length(plan_.buffers()); ++i) check_buffer(*plan_.buffers()->Get(i));
    if (!faults_.none()) return;
    for (uint32_t i = 0; i < length(plan_.tensors()); ++i) check_tensor(*plan_.tensors()->Get(i));
    if (!faults_.none()) return;
    check_parameters();
    check_interface();
    check_owned_are_disjoint();
    if (faults_.none()) check_types_of_owned();
  }

 private:
  void check_recipe() {
    fb::RecipeT recipe;
    plan_.recipe()->UnPackTo(&recipe);
    for (const std::string& fault : recipe_faults(recipe, plan_.model()->context()))
      faults_.add("recipe: {}", fault);
  }

  /// The spec is kept to trace the plan by; no run depends on what its nodes say.
  void check_model() {
    const auto& blocks = *plan_.model()->blocks();
    for (const fb::Block* block : blocks)
      for (const fb::Node* node : *block->nodes())
        if (!is_known(node->op_type()) || node->op_type() == fb::Op::NONE)
          faults_.add("model: {} of block {}: unknown op {}", quoted(node->name()), quoted(block->name()),
                      static_cast<int>(node->op_type()));
  }

  void check_arenas() {
    for (uint32_t i = 0; i < length(plan_.arenas()); ++i) {
      const fb::Arena& arena = *plan_.arenas()->Get(i);
      if (!is_known(arena.kind())) {
        faults_.add("arena {}: unknown kind {}", i, static_cast<int>(arena.kind()));
        continue;
      }
      std::optional<uint64_t>& size = arena_size_[static_cast<size_t>(arena.kind())];
      if (size) faults_.add("arena {}: a second arena of kind {}", i, fb::EnumNameArenaKind(arena.kind()));
      if (arena.size() > kMostBytes) faults_.add("arena {}: {} bytes are more than 2^48", i, arena.size());
      size = arena.size();
    }
  }

  void check_programs() {
    std::array<bool, static_cast<size_t>(fb::ProgramKind::MAX) + 1> seen{};
    uint64_t operands = 0;
    for (uint32_t p = 0; p < length(plan_.programs()); ++p) {
      const fb::Program& program = *plan_.programs()->Get(p);
      if (!is_known(program.kind())) {
        faults_.add("program {}: unknown kind {}", p, static_cast<int>(program.kind()));
        continue;
      }
      bool& before = seen[static_cast<size_t>(program.kind())];
      if (before) faults_.add("program {}: a second program of kind {}", p, program_name(program.kind()));
      if (before) continue;
      before = true;
      for (uint32_t i = 0; i < length(program.instructions()); ++i) {
        const fb::Instruction& instruction = *program.instructions()->Get(i);
        operands += uint64_t{length(instruction.inputs())} + length(instruction.outputs());
      }
    }
    if (operands > kMostOperands) faults_.add("the programs have more than {} operands", kMostOperands);
  }

  void check_buffer(const fb::Buffer& buffer) {
    const std::string name = "buffer " + quoted(buffer.name());
    if (!is_known(buffer.kind())) faults_.add("{}: unknown kind {}", name, static_cast<int>(buffer.kind()));
    if (!is_known(buffer.arena()) || !arena_size_[static_cast<size_t>(buffer.arena())]) {
      faults_.add("{}: its arena ({}) does not exist", name, static_cast<int>(buffer.arena()));
      return;
    }
    const uint64_t arena = *arena_size_[static_cast<size_t>(buffer.arena())];
    if (buffer.offset() > arena || buffer.size() > arena - buffer.offset())
      faults_.add("{}: {} bytes at {} leave the arena of {} bytes", name, buffer.size(), buffer.offset(),
                  arena);
    if (buffer.arena() != fb::ArenaKind::Activations) {
      if (buffer.program() != -1) faults_.add("{}: a persistent buffer belongs to a program", name);
      return;
    }
    if (buffer.program() < 0 || buffer.program() >= checked_.programs()) {
      faults_.add("{}: program {} does not exist", name, buffer.program());
      return;
    }
    if (buffer.offset() % kArenaAlignment != 0)
      faults_.add("{}: offset {} is no multiple of {}", name, buffer.offset(), kArenaAlignment);
    const uint32_t end = length(checked_.program(buffer.program()).instructions());
    if (buffer.first() > buffer.last() || buffer.last() >= end)
      faults_.add("{}: lifetime {}..{} in a program of {} instructions", name, buffer.first(), buffer.last(),
                  end);
  }

  void check_tensor(const fb::Tensor& tensor) {
    checked_.tensors.emplace_back();
    TensorFacts& facts = checked_.tensors.back();
    const std::string name = "tensor " + quoted(tensor.name());
    if (!is_known(tensor.dtype())) {
      faults_.add("{}: unknown dtype {}", name, static_cast<int>(tensor.dtype()));
      return;
    }
    if (tensor.buffer() >= length(plan_.buffers())) {
      faults_.add("{}: buffer {} does not exist", name, tensor.buffer());
      return;
    }
    const std::optional<uint64_t> elements = count_elements(tensor, name);
    if (!elements) return;
    const fb::Buffer& buffer = *plan_.buffers()->Get(tensor.buffer());
    const uint64_t element_bytes = static_cast<uint64_t>(dtype_size(tensor.dtype()));
    const uint64_t bytes = *elements * element_bytes;
    if (tensor.offset() > buffer.size() || bytes > buffer.size() - tensor.offset()) {
      faults_.add("{}: {} bytes at {} leave buffer {} of {} bytes", name, bytes, tensor.offset(),
                  quoted(buffer.name()), buffer.size());
      return;
    }
    const uint64_t begin = buffer.offset() + tensor.offset();
    if (begin % element_bytes != 0) faults_.add("{}: address {} is not aligned to its dtype", name, begin);
    facts = {.extent = {.arena = buffer.arena(), .begin = begin, .end = begin + bytes},
             .elements = *elements,
             .program = buffer.program()};
  }

  /// The product of the dimensions; nothing where it, or that of the dimensions other than 0, is absurd.
  std::optional<uint64_t> count_elements(const fb::Tensor& tensor, const std::string& name) {
    const uint32_t rank = length(tensor.shape());
    if (rank > TensorView::kMaxRank) {
      faults_.add("{}: rank {} is more than {}", name, rank, TensorView::kMaxRank);
      return std::nullopt;
    }
    uint64_t product = 1;
    bool zero = false;
    for (uint32_t i = 0; i < rank; ++i) {
      const uint64_t dim = tensor.shape()->Get(i);
      zero |= dim == 0;
      if (dim == 0) continue;
      if (dim > kMostBytes / product) {
        faults_.add("{}: its shape has more than 2^48 elements", name);
        return std::nullopt;
      }
      product *= dim;
    }
    return zero ? 0 : product;
  }

  bool in_range(int id) const { return id >= 0 && static_cast<size_t>(id) < checked_.tensors.size(); }

  bool is_trained() const {
    for (uint32_t p = 0; p < length(plan_.programs()); ++p) {
      const auto* instructions = plan_.programs()->Get(p)->instructions();
      for (uint32_t i = 0; i < length(instructions); ++i)
        if (is(*instructions->Get(i), "adamw")) return true;
    }
    return false;
  }

  /// Checkpoints hold what the parameters name, under their names.
  void check_parameters() {
    const bool trained = is_trained();
    std::set<std::string_view> names;
    for (uint32_t i = 0; i < length(plan_.parameters()); ++i) {
      const fb::Parameter& parameter = *plan_.parameters()->Get(i);
      check_parameter(parameter);
      if (!is_utf8(parameter.name()->str()))
        faults_.add("parameter {}: the name is not UTF-8", quoted(parameter.name()));
      if (!names.insert(parameter.name()->string_view()).second)
        faults_.add("parameter {}: the name stands twice", quoted(parameter.name()));
      if (trained && (parameter.grad() == -1 || parameter.moment1() == -1 || parameter.moment2() == -1))
        faults_.add("parameter {}: no gradient or no moments, though adamw updates it",
                    quoted(parameter.name()));
    }
  }

  void check_parameter(const fb::Parameter& parameter) {
    const std::string name = "parameter " + quoted(parameter.name());
    if (!in_range(parameter.param())) {
      faults_.add("{}: tensor {} does not exist", name, parameter.param());
      return;
    }
    const uint64_t elements = checked_.tensors[parameter.param()].elements;
    for (int id : {parameter.param(), parameter.grad(), parameter.moment1(), parameter.moment2(),
                   parameter.remainder(), parameter.master()}) {
      if (id == -1) continue;
      if (!in_range(id)) {
        faults_.add("{}: tensor {} does not exist", name, id);
        continue;
      }
      const TensorFacts& facts = checked_.tensors[id];
      if (facts.elements != elements)
        faults_.add("{}: {} has {} elements, the parameter {}", name, quoted(checked_.tensor(id).name()),
                    facts.elements, elements);
      if (facts.program != -1)
        faults_.add("{}: {} is not persistent", name, quoted(checked_.tensor(id).name()));
      owned_.push_back(id);
    }
  }

  void check_owned_are_disjoint() {
    const auto extent = [&](int id) -> const Extent& { return checked_.tensors[id].extent; };
    std::erase_if(owned_, [&](int id) { return extent(id).empty(); });
    std::ranges::sort(owned_, {}, [&](int id) { return std::tuple(extent(id).arena, extent(id).begin); });
    for (size_t i = 1; i < owned_.size(); ++i) {
      const int a = owned_[i - 1], b = owned_[i];
      if (overlap(extent(a), extent(b)))
        faults_.add("{} and {} share bytes", quoted(checked_.tensor(a).name()),
                    quoted(checked_.tensor(b).name()));
    }
  }

  /// Versions of what a parameter owns, and other views of all of it, are of one type.
  void check_types_of_owned() {
    const auto key = [](const Extent& place) { return std::tuple(place.arena, place.begin, place.end); };
    std::map<std::tuple<fb::ArenaKind, uint64_t, uint64_t>, int> owners;
    for (const int id : owned_) owners.emplace(key(checked_.tensors[id].extent), id);
    for (int id = 0; id < static_cast<int>(checked_.tensors.size()); ++id) {
      const TensorFacts& facts = checked_.tensors[id];
      if (facts.program != -1) continue;
      const auto owner = owners.find(key(facts.extent));
      if (owner == owners.end()) continue;
      const fb::DType type = checked_.tensor(id).dtype(), own = checked_.tensor(owner->second).dtype();
      if (type != own)
        faults_.add("{} is of {}, {} in the same place of {}", quoted(checked_.tensor(id).name()),
                    fb::EnumNameDType(type), quoted(checked_.tensor(owner->second).name()),
                    fb::EnumNameDType(own));
    }
  }

  void check_interface() {
    const fb::Interface* io = plan_.io();
    if (!io) return;
    const int64_t batch = plan_.recipe()->batch_size(), seq = plan_.recipe()->seq_len();
    const std::vector<int64_t> state = {sizeof(TrainState)}, ring = {kMetricsRows, kMetricsColumns};
    check_written("train_state", io->train_state(), fb::DType::U8, state);
    check_written("metrics", io->metrics(), fb::DType::F64, ring);
    check_written("window", io->window(), fb::DType::I32, {kAnyExtent});
    if (in_range(io->window()) && plan_.vocab_size() < 1)
      faults_.add("vocab_size: {}, where a window holds tokens", plan_.vocab_size());
    check_written("tokens", io->tokens(), fb::DType::I32, {batch, seq});
    check_written("targets", io->targets(), fb::DType::I32, {batch, seq});
    check_written("prompt", io->prompt(), fb::DType::I32, {1, kAnyExtent});
    check_logits(io->logits());
    for (int id : {io->train_state(), io->metrics(), io->window()})
      if (in_range(id)) owned_.push_back(id);
  }

  /// Whether the plan has this tensor of the interface; a fault where it names one that does not exist.
  bool has_shared(const char* what, int id) {
    if (id != -1 && !in_range(id)) faults_.add("io.{}: tensor {} does not exist", what, id);
    return in_range(id);
  }

  /// What the host writes: memory of this type and shape that outlives programs and belongs to no parameter.
  void check_written(const char* what, int id, fb::DType dtype, const std::vector<int64_t>& shape) {
    if (!has_shared(what, id)) return;
    const fb::Tensor& tensor = checked_.tensor(id);
    bool fits = tensor.dtype() == dtype && length(tensor.shape()) == shape.size();
    for (uint32_t i = 0; fits && i < shape.size(); ++i) {
      const auto extent = static_cast<int64_t>(tensor.shape()->Get(i));
      fits = shape[i] == kAnyExtent ? extent > 0 : extent == shape[i];
    }
    if (!fits)
      faults_.add("io.{}: {} has not the type and shape {}[{}]", what, quoted(tensor.name()),
                  fb::EnumNameDType(dtype), shape_text(shape));
    const fb::BufferKind kind = plan_.buffers()->Get(tensor.buffer())->kind();
    if (checked_.tensors[id].program != -1 || (kind != fb::BufferKind::Io && kind != fb::BufferKind::Scalar))
      faults_.add("io.{}: {} lies in a buffer of kind {}, which the host does not write", what,
                  quoted(tensor.name()), fb::EnumNameBufferKind(kind));
  }

  void check_logits(int id) {
    if (!has_shared("logits", id)) return;
    const fb::Tensor& tensor = checked_.tensor(id);
    const fb::DType dtype = tensor.dtype();
    if (dtype > fb::DType::F16 || checked_.tensors[id].elements < plan_.vocab_size())
      faults_.add("io.logits: {} does not hold the logits of a vocabulary of {}", quoted(tensor.name()),
                  plan_.vocab_size());
  }

  static std::string shape_text(const std::vector<int64_t>& shape) {
    std::vector<std::string> extents;
    for (const int64_t extent : shape) extents.push_back(extent == kAnyExtent ? "N" : std::to_string(extent));
    return fmt::format("{}", fmt::join(extents, ","));
  }

  static constexpr int64_t kAnyExtent = -1;

  CheckedPlan& checked_;
  const fb::Plan& plan_;
  Faults& faults_;
  std::array<std::optional<uint64_t>, static_cast<size_t>(fb::ArenaKind::MAX) + 1> arena_size_;
  std::vector<int> owned_;  // tensors that are a parameter's or the run's own state, not views of another
};

/// Text of a file as a message may show it: on one line, and not endless.
std::string shown(const flatbuffers::String* text) {
  constexpr size_t kLongest = 200;
  if (!text) return {};
  std::string result(text->c_str(), std::min<size_t>(text->size(), kLongest));
  std::ranges::replace_if(
      result, [](unsigned char c) { return std::iscntrl(c) != 0; }, '?');
  return result;
}

}  // namespace

bool overlap(const Extent& a, const Extent& b) {
  return a.arena == b.arena && !a.empty() && !b.empty() && a.begin < b.end && b.begin < a.end;
}

std::string quoted(const flatbuffers::String* name) { return fmt::format("'{}'", shown(name)); }

std::string program_name(fb::ProgramKind kind) {
  std::string name = fb::EnumNameProgramKind(kind);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

std::string describe(const CheckedPlan& checked, int program, uint32_t instruction) {
  const fb::Program& where = checked.program(program);
  const fb::Instruction& what = *where.instructions()->Get(instruction);
  std::string line = fmt::format("{}[{}] {}", program_name(where.kind()), instruction, shown(what.kernel()));
  if (what.label() && what.label()->size() > 0) line += fmt::format(" ({})", shown(what.label()));
  return line;
}

void check_tables(CheckedPlan& checked, Faults& faults) { Tables(checked, faults).check(); }

std::vector<std::string> validate(const fb::Plan& plan) {
  CheckedPlan checked{.plan = plan, .tensors = {}};
  Faults faults;
  check_tables(checked, faults);
  if (faults.none()) check_calls(checked, faults);
  if (faults.none()) check_gradient_norm(checked, faults);
  if (faults.none()) check_start(checked, faults);
  if (faults.none()) check_memory(checked, faults);
  return faults.take();
}

}  // namespace moec::planner
