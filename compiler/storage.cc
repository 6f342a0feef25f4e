#include "compiler/storage.h"

#include <algorithm>
#include <set>

#include "compiler/autodiff.h"
#include "compiler/gradient_squares.h"
#include "kernels/train_state.h"

namespace moec {
namespace {

/// Parameters start at multiples of this many elements, so that every view is aligned to 256 bytes or more.
constexpr int64_t kElementAlignment = 128;
constexpr uint64_t kBufferAlignment = 256;

template <class T>
T round_up(T value, T multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

class Layout {
 public:
  uint32_t add_buffer(const std::string& name, fb::BufferKind kind, fb::ArenaKind arena, int64_t bytes) {
    fb::BufferT buffer;
    buffer.name = name;
    buffer.kind = kind;
    buffer.arena = arena;
    buffer.offset = arena_size(arena);
    buffer.size = static_cast<uint64_t>(bytes);
    storage.buffers.push_back(buffer);
    return static_cast<uint32_t>(storage.buffers.size() - 1);
  }

  /// A buffer of its own for one name.
  void add(const std::string& name, const TensorType& type, Role role, fb::BufferKind kind) {
    add_view(name, type, role, add_buffer(name, kind, fb::ArenaKind::State, type.bytes()), 0);
  }

  void add_view(const std::string& name, const TensorType& type, Role role, uint32_t buffer, int64_t offset) {
    storage.slots.push_back({name, type, role, buffer, static_cast<uint64_t>(offset)});
  }

  Storage storage;

 private:
  uint64_t arena_size(fb::ArenaKind arena) const {
    uint64_t end = 0;
    for (const fb::BufferT& buffer : storage.buffers)
      if (buffer.arena == arena) end = std::max(end, round_up(buffer.offset + buffer.size, kBufferAlignment));
    return end;
  }
};

/// What is kept per parameter besides the parameter: a range over the group and a view for each parameter.
struct Companion {
  std::string range;
  std::string (*name)(const std::string&);
  fb::DType dtype;
  Role role;
  fb::BufferKind kind;
  fb::ArenaKind arena;
};

bool is_summed(const Parameter& parameter) { return !parameter.squares.shape.empty(); }

std::string parameter_name(const std::string& parameter) { return parameter; }

void add_group(Layout& layout, const std::vector<Parameter>& parameters, bool decay,
               const fb::RecipeT& recipe, const Precision& precision) {
  const auto decays = [&](const Parameter& p) {
    return recipe.weight_decay_scope == fb::WeightDecayScope::All || p.spec.shape.size() >= 2;
  };
  // Those whose squares are summed elsewhere come last, so that the others are one range.
  std::vector<int64_t> starts(parameters.size());
  int64_t elements = 0, unsummed = 0;
  for (const bool summed : {false, true}) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& p = parameters[i];
      if (decays(p) != decay || is_summed(p) != summed) continue;
      starts[i] = elements;
      elements =
          round_up(elements + TensorType{precision.compute, p.spec.shape}.elements(), kElementAlignment);
    }
    if (!summed) unsummed = elements;
  }
  if (elements == 0) return;

  const std::string suffix = decay ? "decayed" : "undecayed";
  const bool split = precision.compute == fb::DType::BF16, copied = precision.compute == fb::DType::F16;
  const fb::DType moments = precision.compute == fb::DType::F64 ? fb::DType::F64 : recipe.moment_dtype;
  ParameterGroup group{.decay = decay,
                       .param = "param." + suffix,
                       .grad = "grad." + suffix,
                       .moment1 = "moment1." + suffix,
                       .moment2 = "moment2." + suffix,
                       .unsummed = unsummed == 0          ? ""
                                   : unsummed == elements ? "grad." + suffix
                                                          : "unsummed_grad." + suffix,
                       .master = split    ? "remainder." + suffix
                                 : copied ? "master." + suffix
                                          : "",
                       .elements = elements};
  using Kind = fb::BufferKind;
  using Arena = fb::ArenaKind;
  std::vector<Companion> companions = {
      {group.param, parameter_name, precision.compute, Role::kParameter, Kind::Param, Arena::Params},
      {group.grad, gradient_name, precision.gradient, Role::kGradient, Kind::Grad, Arena::Grads},
      {group.moment1, moment1_name, moments, Role::kOptimizerState, Kind::OptimizerState,
       Arena::OptimizerState},
      {group.moment2, moment2_name, moments, Role::kOptimizerState, Kind::OptimizerState,
       Arena::OptimizerState}};
  if (split || copied)
    companions.push_back({group.master, split ? remainder_name : master_name,
                          split ? fb::DType::U16 : fb::DType::F32, Role::kOptimizerState,
                          Kind::OptimizerState, Arena::OptimizerState});
  for (const Companion& c : companions) {
    const TensorType range{c.dtype, {elements}};
    const uint32_t buffer = layout.add_buffer(c.range, c.kind, c.arena, range.bytes());
    layout.add_view(c.range, range, c.role, buffer, 0);
    for (size_t i = 0; i < parameters.size(); ++i)
      if (decays(parameters[i]) == decay)
        layout.add_view(c.name(parameters[i].name), {c.dtype, parameters[i].spec.shape}, c.role, buffer,
                        starts[i] * dtype_size(c.dtype));
    if (c.range == group.grad && unsummed > 0 && unsummed < elements)
      layout.add_view(group.unsummed, {c.dtype, {unsummed}}, c.role, buffer, 0);
  }
  layout.storage.groups.push_back(group);
}

/// The sums of squares of gradients: a range, and a view for each parameter.
void add_squares(Layout& layout, const std::vector<Parameter>& parameters) {
  int64_t elements = 0;
  for (const Parameter& p : parameters)
    if (is_summed(p)) elements += p.squares.elements();
  if (elements == 0) return;
  layout.storage.squares = "squares";
  const TensorType range{fb::DType::F64, {elements}};
  const uint32_t buffer =
      layout.add_buffer(layout.storage.squares, fb::BufferKind::Grad, fb::ArenaKind::Grads, range.bytes());
  layout.add_view(layout.storage.squares, range, Role::kGradient, buffer, 0);
  int64_t offset = 0;
  for (const Parameter& p : parameters) {
    if (!is_summed(p)) continue;
    layout.add_view(squares_name(p.name), p.squares, Role::kGradient, buffer, offset);
    offset += p.squares.bytes();
  }
}

}  // namespace

const StorageSlot& Storage::slot(const std::string& name) const {
  const auto it =
      std::find_if(slots.begin(), slots.end(), [&](const StorageSlot& s) { return s.name == name; });
  if (it == slots.end()) compile_error("no persistent memory is named '{}'", name);
  return *it;
}

std::string moment1_name(const std::string& parameter) { return "moment1." + parameter; }
std::string moment2_name(const std::string& parameter) { return "moment2." + parameter; }
std::string remainder_name(const std::string& parameter) { return "remainder." + parameter; }
std::string master_name(const std::string& parameter) { return "master." + parameter; }

void check_parameter_names(const std::vector<Parameter>& parameters) {
  std::set<std::string> names;
  for (const Parameter& p : parameters) names.insert(p.name);
  for (const Parameter& p : parameters)
    for (const auto companion :
         {gradient_name, moment1_name, moment2_name, remainder_name, master_name, squares_name})
      if (names.contains(companion(p.name)))
        compile_error(
            "parameter '{}' has the name of memory that is kept for parameter '{}': rename its block or node",
            companion(p.name), p.name);
}

Storage lay_out_storage(const std::vector<Parameter>& parameters, const fb::RecipeT& recipe,
                        const Precision& precision, int64_t window_tokens, const TensorType& logits) {
  Layout layout;
  for (const bool decay : {true, false}) add_group(layout, parameters, decay, recipe, precision);
  add_squares(layout, parameters);
  using Kind = fb::BufferKind;
  const int64_t batch = recipe.batch_size, seq = recipe.seq_len;
  layout.add(kTrainStateName, {fb::DType::U8, {sizeof(TrainState)}}, Role::kState, Kind::Scalar);
  layout.add(kMetricsName, {fb::DType::F64, {kMetricsRows, kMetricsColumns}}, Role::kState, Kind::Io);
  if (window_tokens > 0) layout.add(kWindowName, {fb::DType::I32, {window_tokens}}, Role::kIo, Kind::Io);
  layout.add(kTokensName, {fb::DType::I32, {batch, seq}}, Role::kIo, Kind::Io);
  layout.add(kTargetsName, {fb::DType::I32, {batch, seq}}, Role::kIo, Kind::Io);
  layout.add(kPromptName, {fb::DType::I32, {1, seq}}, Role::kIo, Kind::Io);
  layout.add(kLogitsName, logits, Role::kIo, Kind::Io);
  return std::move(layout.storage);
}

}  // namespace moec
