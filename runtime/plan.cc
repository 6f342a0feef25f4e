#include "runtime/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "kernels/call_shapes.h"
#include "kernels/catalog.h"
#include "planner/validate.h"
#include "runtime/file_io.h"
#include "runtime/guard.h"
#include "schema/plan_file.h"
#include "schema/version.h"

namespace moec::runtime {
namespace {

// Far above what a plan needs (one table per tensor, buffer and instruction); they bound the work that a
// hostile file can cause.
constexpr flatbuffers::uoffset_t kMaxDepth = 32;
constexpr flatbuffers::uoffset_t kMaxTables = 4'000'000;

constexpr size_t kIdentifierOffset = sizeof(flatbuffers::uoffset_t);
constexpr size_t kSmallestFile = kIdentifierOffset + flatbuffers::FlatBufferBuilder::kFileIdentifierLength;

std::string printable(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += std::isprint(static_cast<unsigned char>(c)) != 0 ? c : '?';
  return text;
}

Status check_identifier(const std::string& bytes, const std::string& source) {
  if (bytes.size() < kSmallestFile)
    return input_error(fmt::format("{}: not a plan: {} bytes, too short for a header", source, bytes.size()));
  if (fb::PlanBufferHasIdentifier(bytes.data())) return {};
  const std::string_view found = std::string_view(bytes).substr(kIdentifierOffset, 4);
  if (found == fb::ModelIdentifier())
    return input_error(fmt::format("{}: this is a model, not a plan: compile it with moec first", source));
  return input_error(fmt::format("{}: not a plan: its identifier is '{}', expected '{}'", source,
                                 printable(found), fb::PlanIdentifier()));
}

TensorView shape_view(const fb::PlanT& plan, int id) {
  TensorView view;
  if (id < 0) return view;
  const fb::TensorT& tensor = *plan.tensors[static_cast<size_t>(id)];
  view.dtype = tensor.dtype;
  view.rank = static_cast<int>(tensor.shape.size());
  std::copy(tensor.shape.begin(), tensor.shape.end(), view.shape.begin());
  return view;
}

}  // namespace

const fb::ProgramT* LoadedPlan::program(fb::ProgramKind kind) const {
  for (const auto& candidate : plan.programs)
    if (candidate->kind == kind) return candidate.get();
  return nullptr;
}

const fb::TensorT* LoadedPlan::tensor(int id) const {
  return id < 0 ? nullptr : plan.tensors[static_cast<size_t>(id)].get();
}

int LoadedPlan::parameter_index(std::string_view name) const {
  for (size_t i = 0; i < plan.parameters.size(); ++i)
    if (plan.parameters[i]->name == name) return static_cast<int>(i);
  return -1;
}

ProgramCost cost_of(const fb::ProgramT& program) {
  ProgramCost cost;
  for (const auto& instruction : program.instructions) {
    if (!instruction->recompute) cost.flops += instruction->flops;
    cost.bytes += instruction->bytes;
  }
  return cost;
}

std::string_view variant_of(const fb::PlanT& plan, const fb::InstructionT& instruction) {
  return instruction.variant == 0 ? std::string_view() : plan.variants[instruction.variant - 1];
}

std::string call_shapes(const fb::PlanT& plan, const fb::InstructionT& instruction) {
  KernelCall call;
  for (const int id : instruction.inputs) call.inputs.push_back(shape_view(plan, id));
  for (const int id : instruction.outputs) call.outputs.push_back(shape_view(plan, id));
  return moec::call_shapes(*find_kernel(instruction.kernel), call);
}

Result<std::shared_ptr<const LoadedPlan>> parse_plan(std::string bytes, const std::string& source) {
  return guarded("loading " + source, [&]() -> Result<std::shared_ptr<const LoadedPlan>> {
    MOEC_RETURN_IF_ERROR(check_identifier(bytes, source));
    flatbuffers::Verifier verifier(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), kMaxDepth,
                                   kMaxTables);
    if (!fb::VerifyPlanBuffer(verifier))
      return input_error(fmt::format("{}: damaged or truncated: {} bytes that are not a sound FlatBuffer",
                                     source, bytes.size()));
    const fb::Plan& plan = *fb::GetPlan(bytes.data());
    if (plan.version() != kPlanVersion)
      return input_error(
          fmt::format("{}: plan version {}; this build reads version {}: compile the model again", source,
                      plan.version(), kPlanVersion));
    if (!plan_checksum_holds({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}))
      return input_error(fmt::format("{}: damaged: its checksum is not that of its contents", source));
    if (const std::vector<std::string> faults = planner::validate(plan); !faults.empty())
      return input_error(
          fmt::format("{}: unsound plan: {}{}", source, faults.front(),
                      faults.size() == 1 ? "" : fmt::format(" (and {} more faults)", faults.size() - 1)));
    auto loaded = std::make_shared<LoadedPlan>();
    loaded->source = source;
    plan.UnPackTo(&loaded->plan);
    loaded->bytes = std::move(bytes);
    return std::shared_ptr<const LoadedPlan>(std::move(loaded));
  });
}

Result<std::shared_ptr<const LoadedPlan>> load_plan(const std::string& path) {
  MOEC_ASSIGN_OR_RETURN(std::string bytes, read_file(path));
  return parse_plan(std::move(bytes), path);
}

}  // namespace moec::runtime
