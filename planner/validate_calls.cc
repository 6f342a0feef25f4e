#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "kernels/catalog.h"
#include "planner/validate_parts.h"
#include "schema/rules.h"

namespace moec::planner {
namespace {

using Ids = flatbuffers::Vector<int32_t>;

/// Index of the declaration that the i-th operand of a list falls under.
int declared_at(uint32_t i, const std::vector<Operand>& declared) {
  return static_cast<int>(std::min<size_t>(i, declared.size() - 1));
}

/// One instruction, whose faults start with `where`.
class Call {
 public:
  Call(const CheckedPlan& checked, Faults& faults, int program, uint32_t index)
      : checked_(checked),
        faults_(faults),
        program_(program),
        instruction_(*checked.program(program).instructions()->Get(index)),
        index_(index) {}

  void check() {
    info_ = find_kernel(instruction_.kernel()->string_view());
    if (!info_) return fault("the kernel is unknown");
    if (const fb::Op op = instruction_.op_type(); op != info_->attributes)
      return fault("the kernel has the attributes of '{}'", is_known(op) ? fb::EnumNameOp(op) : "?");
    check_variant();
    const bool inputs = check_list(instruction_.inputs(), info_->inputs, "input");
    const bool outputs = check_list(instruction_.outputs(), info_->outputs, "output");
    if (!inputs || !outputs || !check_types_shapes_and_workspace()) return;
    check_outputs();
    check_required_pairs();
  }

 private:
  template <class... Args>
  void fault(fmt::format_string<Args...> format, Args&&... args) {
    faults_.add("{}: {}", describe(checked_, program_, index_),
                fmt::format(format, std::forward<Args>(args)...));
  }

  std::string name(int id) const { return quoted(checked_.tensor(id).name()); }
  const TensorFacts& facts(int id) const { return checked_.tensors[id]; }

  bool check_list(const Ids* ids, const std::vector<Operand>& declared, const char* role) {
    const uint32_t given = length(ids);
    const bool variadic = !declared.empty() && declared.back().variadic;
    const size_t least = declared.size() - (variadic ? 1 : 0);
    if (given < least || (given > least && !variadic)) {
      fault("{} {}s where the kernel has {}{}", given, role, variadic ? "at least " : "", least);
      return false;
    }
    bool sound = true;
    for (uint32_t i = 0; i < given; ++i)
      sound &= check_operand(ids->Get(i), declared[declared_at(i, declared)], role);
    return sound;
  }

  bool check_operand(int id, const Operand& declared, const char* role) {
    if (id == -1) {
      if (!declared.optional) fault("{} '{}' is missing", role, declared.name);
      return declared.optional;
    }
    if (!check_id(id)) return false;
    const TensorFacts& tensor = facts(id);
    if (tensor.program != -1 && tensor.program != program_) {
      fault("{} '{}' is {}, which belongs to another program", role, declared.name, name(id));
      return false;
    }
    if (const std::optional<int> shared = shared_with_host(declared.name);
        shared && (*shared == -1 || tensor.extent != facts(*shared).extent)) {
      fault("{} '{}' is {}, which is not where the host writes it", role, declared.name, name(id));
      return false;
    }
    return true;
  }

  /// The tensor of the interface that an operand of this name must be, -1 where the plan has none.
  std::optional<int> shared_with_host(std::string_view operand) const {
    const fb::Interface* io = checked_.plan.io();
    if (operand == "state" || operand == "state_prev") return io ? io->train_state() : -1;
    if (operand == "metrics" || operand == "metrics_prev") return io ? io->metrics() : -1;
    if (operand == "window") return io ? io->window() : -1;
    return std::nullopt;
  }

  void check_variant() {
    const auto* names = checked_.plan.variants();
    const uint32_t place = instruction_.variant();
    if (place == 0) return;
    if (place > length(names)) return fault("variant {} of the plan's {}", place, length(names));
    if (length(checked_.plan.tuned_for()) == 0)
      return fault("a variant of a plan that is tuned for no device");
    const flatbuffers::String* name = names->Get(place - 1);
    const auto known = std::ranges::find(info_->variants, name->string_view());
    if (known == info_->variants.end()) fault("the kernel has no variant {}", quoted(name));
  }

  bool check_id(int id) {
    if (id >= 0 && static_cast<size_t>(id) < checked_.tensors.size()) return true;
    fault("tensor {} does not exist", id);
    return false;
  }

  /// The catalog's demand for workspace is a function of shapes that fit.
  bool check_types_shapes_and_workspace() {
    const int id = instruction_.workspace();
    if (id != -1) {
      if (!check_id(id)) return false;
      if (facts(id).program != program_) {
        fault("workspace {} is not a buffer of this program", name(id));
        return false;
      }
    }
    fb::OpUnion op;
    op.type = instruction_.op_type();
    op.value = fb::OpUnion::UnPack(instruction_.op(), op.type, nullptr);
    const KernelCall call{.inputs = views(instruction_.inputs()),
                          .outputs = views(instruction_.outputs()),
                          .workspace = {},
                          .op = &op};
    if (const std::string_view attribute = unknown_attribute(op); !attribute.empty()) {
      fault("unknown enumerator of {}", attribute);
      return false;
    }
    if (!info_->types_fit(call)) {
      fault("the operands' types do not fit the kernel: {}", types_text(call));
      return false;
    }
    const fb::Recipe& recipe = *checked_.plan.recipe();
    const PlanSizes sizes = {recipe.batch_size(), recipe.seq_len(), checked_.plan.vocab_size()};
    if (const std::string misfit = info_->shapes.misfit(*info_, call, sizes); !misfit.empty()) {
      fault("{}", misfit);
      return false;
    }
    const uint64_t needed = info_->workspace(call);
    const uint64_t given = id == -1 ? 0 : facts(id).bytes();
    if (given < needed) fault("{} bytes of workspace where the kernel needs {}", given, needed);
    return given >= needed;
  }

  /// "BF16, I32 -> F32".
  static std::string types_text(const KernelCall& call) {
    const auto list = [](const std::vector<TensorView>& operands) {
      std::vector<const char*> types;
      for (const TensorView& view : operands)
        types.push_back(view.present() ? fb::EnumNameDType(view.dtype) : "-");
      return fmt::format("{}", fmt::join(types, ", "));
    };
    return list(call.inputs) + " -> " + list(call.outputs);
  }

  std::vector<TensorView> views(const Ids* ids) const {
    std::vector<TensorView> result(length(ids));
    for (uint32_t i = 0; i < length(ids); ++i) {
      if (ids->Get(i) == -1) continue;
      const fb::Tensor& tensor = checked_.tensor(ids->Get(i));
      TensorView& view = result[i];
      view.dtype = tensor.dtype();
      view.rank = static_cast<int>(length(tensor.shape()));
      for (int d = 0; d < view.rank; ++d)
        view.shape[static_cast<size_t>(d)] =
            static_cast<int64_t>(tensor.shape()->Get(static_cast<uint32_t>(d)));
    }
    return result;
  }

  /// Outputs and workspace against the inputs and each other.
  void check_outputs() {
    const Ids* outputs = instruction_.outputs();
    const int scratch = instruction_.workspace();
    if (scratch != -1) check_against_inputs(scratch, -1);
    for (uint32_t o = 0; o < length(outputs); ++o) {
      const int id = outputs->Get(o);
      if (id == -1) continue;
      if (facts(id).program == -1 && checked_.tensor(id).version() == 0)
        fault("writes {}, which is the state before the program (version 0)", name(id));
      check_against_inputs(id, static_cast<int>(o));
      if (scratch != -1) check_disjoint(id, scratch);
      for (uint32_t other = 0; other < o; ++other)
        if (outputs->Get(other) != -1) check_disjoint(outputs->Get(other), id);
    }
  }

  void check_disjoint(int a, int b) {
    if (a == b || overlap(facts(a).extent, facts(b).extent))
      fault("writes {} and {} over each other", name(a), name(b));
  }

  /// `output` is the operand's index, -1 for the workspace.
  void check_against_inputs(int id, int output) {
    const Ids* inputs = instruction_.inputs();
    for (uint32_t i = 0; i < length(inputs); ++i) {
      const int input = inputs->Get(i);
      if (input == -1 || !overlap(facts(id).extent, facts(input).extent)) continue;
      const int declared = declared_at(i, info_->inputs);
      const bool may = std::ranges::any_of(info_->in_place, [&](const InPlace& pair) {
        return pair.output == output && pair.input == declared;
      });
      if (!may || facts(id).extent != facts(input).extent)
        fault("writes {} over its input {}", name(id), name(input));
    }
  }

  void check_required_pairs() {
    for (const InPlace& pair : info_->in_place) {
      if (!pair.required) continue;
      const int input = instruction_.inputs()->Get(static_cast<uint32_t>(pair.input));
      const int output = instruction_.outputs()->Get(static_cast<uint32_t>(pair.output));
      if (input == -1) {
        if (output != -1 && adds(output)) fault("overwrites {}, to which it has to add", name(output));
        continue;
      }
      if (output == -1 || facts(output).extent != facts(input).extent)
        fault("must write output {} in place of {}", pair.output, name(input));
    }
  }

  /// Whether an output that takes the place of an input, where that is present, finds a gradient there: of
  /// the micro-batch before, or of another instruction.
  bool adds(int output) const {
    const uint32_t found = checked_.plan.recipe()->grad_accum() > 1 ? 0 : 1;
    return checked_.program(program_).kind() == fb::ProgramKind::Accumulate && facts(output).program == -1 &&
           checked_.tensor(output).version() > found;
  }

  const CheckedPlan& checked_;
  Faults& faults_;
  int program_;
  const fb::Instruction& instruction_;
  uint32_t index_;
  const KernelInfo* info_ = nullptr;
};

}  // namespace

void check_calls(const CheckedPlan& checked, Faults& faults) {
  for (int p = 0; p < checked.programs(); ++p)
    for (uint32_t i = 0; i < length(checked.program(p).instructions()); ++i)
      Call(checked, faults, p, i).check();
}

}  // namespace moec::planner
