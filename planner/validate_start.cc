#include <algorithm>
#include <array>
#include <tuple>

#include "planner/validate_parts.h"

namespace moec::planner {
namespace {

/// Bytes of which something is said.
class Bytes {
 public:
  void add(const Extent& extent) {
    if (!extent.empty()) extents_.push_back(extent);
  }

  /// Makes the extents disjoint, and ready to be searched.
  void merge() {
    std::ranges::sort(extents_, {},
                      [](const Extent& extent) { return std::tuple(extent.arena, extent.begin); });
    std::vector<Extent> merged;
    for (const Extent& extent : extents_) {
      if (merged.empty() || merged.back().arena != extent.arena || merged.back().end < extent.begin)
        merged.push_back(extent);
      merged.back().end = std::max(merged.back().end, extent.end);
    }
    extents_ = std::move(merged);
  }

  bool hold_all(const Extent& of) const {
    const Extent* found = first_touching(of);
    return of.empty() || (found && found->begin <= of.begin && of.end <= found->end);
  }
  bool hold_some(const Extent& of) const { return of.empty() || first_touching(of); }

 private:
  const Extent* first_touching(const Extent& of) const {
    const auto found = std::ranges::partition_point(extents_, [&](const Extent& extent) {
      return std::tuple(extent.arena, extent.end) <= std::tuple(of.arena, of.begin);
    });
    return found != extents_.end() && overlap(*found, of) ? &*found : nullptr;
  }

  std::vector<Extent> extents_;
};

/// Programs that run in turns, so that each finds what the others have left.
enum class Turn : uint8_t { init, train, evaluate, generate };
constexpr size_t kTurns = 4;

Turn turn_of(fb::ProgramKind kind) {
  switch (kind) {
    case fb::ProgramKind::Init:
      return Turn::init;
    case fb::ProgramKind::Accumulate:
    case fb::ProgramKind::Apply:
      return Turn::train;
    case fb::ProgramKind::Evaluate:
      return Turn::evaluate;
    case fb::ProgramKind::Prefill:
    case fb::ProgramKind::Decode:
      return Turn::generate;
  }
  return Turn::init;
}

class Start {
 public:
  Start(const CheckedPlan& checked, Faults& faults)
      : checked_(checked), plan_(checked.plan), faults_(faults) {}

  void check() {
    if (length(plan_.parameters()) == 0) return faults_.add("the plan of a model has no parameters");
    for (int p = 0; p < checked_.programs(); ++p) add_writes(p);
    add_host();
    host_.merge();
    for (Bytes& written : written_) written.merge();
    for (uint32_t i = 0; i < length(plan_.parameters()); ++i) check_parameter(*plan_.parameters()->Get(i));
    for (int p = 0; p < checked_.programs(); ++p) check_reads(p);
    for (int p = 0; p < checked_.programs(); ++p)
      if (runs_model(checked_.program(p).kind())) check_parameters_are_read(p);
  }

 private:
  Bytes& written(Turn turn) { return written_[static_cast<size_t>(turn)]; }
  const Extent& extent(int id) const { return checked_.tensors[id].extent; }
  bool persists(int id) const { return id != -1 && checked_.tensors[id].program == -1; }

  /// Those of an operand list that outlive the program.
  void add_persistent(const flatbuffers::Vector<int32_t>* ids, Bytes& bytes) {
    for (uint32_t k = 0; k < length(ids); ++k)
      if (const int id = ids->Get(k); persists(id)) bytes.add(extent(id));
  }

  void add_writes(int p) {
    const auto* instructions = checked_.program(p).instructions();
    for (uint32_t i = 0; i < length(instructions); ++i)
      add_persistent(instructions->Get(i)->outputs(), written(turn_of(checked_.program(p).kind())));
  }

  void add_host() {
    const fb::Interface* io = plan_.io();
    if (!io) return;
    for (const int id :
         {io->train_state(), io->metrics(), io->window(), io->tokens(), io->targets(), io->prompt()})
      if (id != -1) host_.add(extent(id));
  }

  /// A bf16 parameter's remainder starts as zero, as all memory does, an f16 parameter's master does not.
  void check_parameter(const fb::Parameter& parameter) {
    for (const int id : {parameter.param(), parameter.master()})
      if (id != -1 && !written(Turn::init).hold_all(extent(id)))
        faults_.add("parameter {}: no instruction of init writes all of {}", quoted(parameter.name()),
                    quoted(checked_.tensor(id).name()));
  }

  /// Ranges over parameters, and over what belongs to them, have gaps that nobody writes.
  void check_reads(int p) {
    const auto* instructions = checked_.program(p).instructions();
    const Bytes& before = written(Turn::init);
    const Bytes& here = written(turn_of(checked_.program(p).kind()));
    for (uint32_t i = 0; i < length(instructions); ++i) {
      const auto* inputs = instructions->Get(i)->inputs();
      for (uint32_t k = 0; k < length(inputs); ++k) {
        const int id = inputs->Get(k);
        if (!persists(id) || checked_.tensor(id).version() != 0) continue;
        const Extent& place = extent(id);
        if (!before.hold_some(place) && !here.hold_some(place) && !host_.hold_some(place))
          faults_.add("{}: reads {}, which nothing has written", describe(checked_, p, i),
                      quoted(checked_.tensor(id).name()));
      }
    }
  }

  /// Whether the program has a forward pass of the model that the plan names.
  bool runs_model(fb::ProgramKind kind) const {
    return length(plan_.model()->blocks()) > 0 && turn_of(kind) != Turn::init &&
           kind != fb::ProgramKind::Apply;
  }

  /// An optional operand may be a parameter, such as the bias of a fused layer.
  void check_parameters_are_read(int p) {
    Bytes read;
    const auto* instructions = checked_.program(p).instructions();
    for (uint32_t i = 0; i < length(instructions); ++i) add_persistent(instructions->Get(i)->inputs(), read);
    read.merge();
    for (uint32_t i = 0; i < length(plan_.parameters()); ++i) {
      const fb::Parameter& parameter = *plan_.parameters()->Get(i);
      if (!read.hold_all(extent(parameter.param())))
        faults_.add("{}: no instruction reads the parameter {}", program_name(checked_.program(p).kind()),
                    quoted(parameter.name()));
    }
  }

  const CheckedPlan& checked_;
  const fb::Plan& plan_;
  Faults& faults_;
  Bytes host_;
  std::array<Bytes, kTurns> written_;
};

}  // namespace

void check_start(const CheckedPlan& checked, Faults& faults) {
  if (length(checked.plan.parameters()) > 0 || length(checked.plan.model()->blocks()) > 0)
    Start(checked, faults).check();
}

}  // namespace moec::planner
