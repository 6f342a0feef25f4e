#include "runtime/lockstep.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "kernels/float16.h"
#include "kernels/master_weight.h"
#include "kernels/train_state.h"
#include "runtime/guard.h"

namespace moec::runtime {
namespace {

using Bytes = std::vector<std::byte>;

Result<Bytes> read_all(Device& device, int tensor) {
  const fb::TensorT& t = *device.plan().tensor(tensor);
  auto size = static_cast<size_t>(dtype_size(t.dtype));
  for (const uint64_t extent : t.shape) size *= extent;
  Bytes bytes(size);
  MOEC_RETURN_IF_ERROR(device.read(tensor, 0, bytes));
  return bytes;
}

/// The bytes as elements of type T, each turned into a double.
template <class T, class Widen>
std::vector<double> widened(const Bytes& bytes, Widen&& widen) {
  std::vector<double> values(bytes.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    T element{};
    std::memcpy(&element, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = static_cast<double>(widen(element));
  }
  return values;
}

template <class T>
std::vector<double> widened(const Bytes& bytes) {
  return widened<T>(bytes, [](T x) { return x; });
}

/// The fields that kernels write.
std::vector<double> fields(const Bytes& bytes) {
  TrainState s;
  std::memcpy(&s, bytes.data(), sizeof(s));
  const int64_t counts[] = {s.step,          s.micro_batch, s.eval_batch,
                            s.skipped_steps, s.non_finite,  s.clean_steps};
  std::vector<double> values(std::begin(counts), std::end(counts));
  values.insert(values.end(),
                {s.loss, s.aux_loss, s.eval_loss, s.grad_norm, s.lr, s.loss_scale, s.grad_scale});
  return values;
}

/// An output as numbers. The low half of a master weight (U16) means something only with the high half, which
/// is the instruction's first output: the two are the f32 weight.
Result<std::vector<double>> read_output(Device& device, const fb::InstructionT& instruction, int tensor) {
  MOEC_ASSIGN_OR_RETURN(const Bytes bytes, read_all(device, tensor));
  switch (device.plan().tensor(tensor)->dtype) {
    case fb::DType::F64:
      return widened<double>(bytes);
    case fb::DType::F32:
      return widened<float>(bytes);
    case fb::DType::I32:
      return widened<int32_t>(bytes);
    case fb::DType::BF16:
      return widened<bf16>(bytes);
    case fb::DType::F16:
      return widened<f16>(bytes);
    case fb::DType::U16: {
      MOEC_ASSIGN_OR_RETURN(const Bytes weights, read_all(device, instruction.outputs[0]));
      const auto* weight = reinterpret_cast<const uint16_t*>(weights.data());
      return widened<uint16_t>(
          bytes, [&](uint16_t low) { return std::bit_cast<float>(join_master(*weight++, low)); });
    }
    default:
      return bytes.size() == sizeof(TrainState) ? fields(bytes) : widened<uint8_t>(bytes);
  }
}

/// f64 sums beside a result of fewer bits are of its elements, as each device has rounded them.
double tolerance_of(const fb::TensorT& tensor, const fb::TensorT& result) {
  using enum fb::DType;
  const bool sums =
      tensor.dtype == F64 && (result.dtype == F32 || result.dtype == BF16 || result.dtype == F16);
  const bool holds_f32 = tensor.dtype == U16 || tensor.dtype == U8;
  return lockstep_tolerance(sums || holds_f32 ? F32 : tensor.dtype);
}

/// Sets the element, values and differences of the largest difference.
void find_worst(const std::vector<double>& a, const std::vector<double>& b, Comparison& result) {
  double scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isfinite(a[i])) scale = std::max(scale, std::abs(a[i]));
    const bool same = a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]));
    double difference = same ? 0 : std::abs(a[i] - b[i]);
    if (std::isnan(difference)) difference = std::numeric_limits<double>::infinity();
    if (difference <= result.absolute && i > 0) continue;
    result.element = i;
    result.a = a[i];
    result.b = b[i];
    result.absolute = difference;
  }
  if (result.absolute > 0)
    result.relative = result.absolute / std::max(scale, std::numeric_limits<double>::min());
}

/// Gives `b` the operands that `a` has.
Status copy_operands(Device& a, Device& b, const fb::InstructionT& instruction) {
  for (const auto* operands : {&instruction.inputs, &instruction.outputs})
    for (const int tensor : *operands) {
      if (tensor < 0) continue;
      MOEC_ASSIGN_OR_RETURN(const Bytes bytes, read_all(a, tensor));
      MOEC_RETURN_IF_ERROR(b.write(tensor, 0, bytes));
    }
  return {};
}

Result<Comparison> compare(Device& a, Device& b, const fb::InstructionT& instruction) {
  const auto first = std::ranges::find_if(instruction.outputs, [](int tensor) { return tensor >= 0; });
  Comparison worst;
  for (const int tensor : instruction.outputs) {
    if (tensor < 0) continue;
    const fb::TensorT& output = *a.plan().tensor(tensor);
    MOEC_ASSIGN_OR_RETURN(const std::vector<double> of_a, read_output(a, instruction, tensor));
    MOEC_ASSIGN_OR_RETURN(const std::vector<double> of_b, read_output(b, instruction, tensor));
    Comparison comparison{.output = output.name, .tolerance = tolerance_of(output, *a.plan().tensor(*first))};
    find_worst(of_a, of_b, comparison);
    const bool worse = comparison.relative * worst.tolerance > worst.relative * comparison.tolerance;
    if (worst.output.empty() || worse || (!comparison.agrees() && worst.agrees())) worst = comparison;
  }
  return worst;
}

}  // namespace

double lockstep_tolerance(fb::DType dtype) {
  switch (dtype) {
    case fb::DType::F64:
      return 1e-11;
    case fb::DType::F32:
      return 1e-4;
    case fb::DType::BF16:
      return 0x1p-6;  // four roundings
    case fb::DType::F16:
      return 0x1p-9;
    default:
      return 0;
  }
}

Status run_lockstep(Device& a, Device& b, fb::ProgramKind kind,
                    const std::function<Status(const Comparison&)>& report) {
  return guarded("comparing devices", [&]() -> Status {
    const fb::ProgramT* program = a.plan().program(kind);
    if (program == nullptr)
      return input_error(a.plan().source + ": the plan has no " + fb::EnumNameProgramKind(kind) + " program");
    for (size_t i = 0; i < program->instructions.size(); ++i) {
      const fb::InstructionT& instruction = *program->instructions[i];
      MOEC_RETURN_IF_ERROR(copy_operands(a, b, instruction));
      MOEC_RETURN_IF_ERROR(a.run_instruction(kind, i).status());
      MOEC_RETURN_IF_ERROR(b.run_instruction(kind, i).status());
      MOEC_ASSIGN_OR_RETURN(Comparison comparison, compare(a, b, instruction));
      comparison.program = kind;
      comparison.index = i;
      comparison.instruction = &instruction;
      MOEC_RETURN_IF_ERROR(report(comparison));
    }
    return {};
  });
}

}  // namespace moec::runtime
