#include "kernels/catalog.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "kernels/workspace.h"

namespace moec {
namespace {

constexpr std::string_view kPrevious = "_prev";

OperandType type_named(std::string_view name) {
  constexpr std::pair<std::string_view, OperandType> kTypes[] = {{"wide", OperandType::wide},
                                                                 {"accumulator", OperandType::accumulator}};
  for (const auto& [word, type] : kTypes)
    if (word == name) return type;
  throw std::logic_error("catalog.def: unknown type of an operand");
}

/// The type of operands of this name that a signature leaves open.
OperandType usual_type(std::string name) {
  static const std::map<std::string, OperandType> types = [] {
    std::map<std::string, OperandType> found;
    const auto add = [&](OperandType type, const char* names) {
      std::istringstream words(names);
      for (std::string word; words >> word;) found[word] = type;
    };
#define OPERANDS(type, names) add(OperandType::type, names);
#include "kernels/operand_types.def"
#undef OPERANDS
    return found;
  }();
  if (name.ends_with(kPrevious)) name.resize(name.size() - kPrevious.size());
  const auto it = types.find(name);
  return it == types.end() ? OperandType::number : it->second;
}

std::vector<Operand> parse_operands(std::istringstream& words) {
  std::vector<Operand> operands;
  for (std::string word; words >> word && word != "->";) {
    Operand operand;
    const size_t type = word.find(':');
    if (type != word.npos) operand.type = type_named(std::string_view(word).substr(type + 1));
    word.resize(std::min(type, word.size()));
    operand.optional = word.back() == '?';
    operand.variadic = word.back() == '*';
    if (operand.optional || operand.variadic) word.pop_back();
    operand.name = word;
    if (type == std::string::npos) operand.type = usual_type(word);
    operands.push_back(operand);
  }
  return operands;
}

/// The attributes that a key is named after: "silu_bwd" after Silu, "grad_norm" after GradNorm.
fb::Op named_after(std::string_view key) {
  std::string stem(key.substr(0, key.find("_bwd")));
  std::erase(stem, '_');
  for (const fb::Op op : fb::EnumValuesOp())
    if (std::ranges::equal(stem, std::string_view(fb::EnumNameOp(op)),
                           [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); }))
      return op;
  throw std::logic_error("attributes.def: no row for a kernel that is named after no op");
}

fb::Op attributes_of(std::string_view key) {
  constexpr std::pair<std::string_view, fb::Op> kOthers[] = {
#define ATTRIBUTES(key, op) {#key, fb::Op::op},
#include "kernels/attributes.def"
#undef ATTRIBUTES
  };
  const auto other = std::ranges::find(kOthers, key, &std::pair<std::string_view, fb::Op>::first);
  return other == std::end(kOthers) ? named_after(key) : other->second;
}

/// The names of the kernel's row in variants.def, if it has one.
std::vector<std::string> variants_of(std::string_view key) {
  std::vector<std::string> names;
  const auto add = [&](std::string_view row, const char* text) {
    std::istringstream words(text);
    for (std::string word; row == key && words >> word;) names.push_back(word);
  };
#define VARIANTS(key, names) add(#key, names);
#include "kernels/variants.def"
#undef VARIANTS
  return names;
}

/// The kernel's row in operand_shapes.def; every shape where it has none.
ShapeRule shapes_of(const KernelInfo& info) {
  constexpr std::pair<std::string_view, std::string_view> kRows[] = {
#define SHAPES(key, shapes) {#key, shapes},
#include "kernels/operand_shapes.def"
#undef SHAPES
  };
  const auto row = std::ranges::find(kRows, info.key, &std::pair<std::string_view, std::string_view>::first);
  return row == std::end(kRows) ? ShapeRule() : ShapeRule(info, row->second);
}

int index_of(const std::vector<Operand>& operands, std::string_view name) {
  for (size_t i = 0; i < operands.size(); ++i)
    if (operands[i].name == name) return static_cast<int>(i);
  return -1;
}

/// What the types of a call have in common.
struct CallTypes {
  fb::DType number, gradient, moment;

  fb::DType accumulator() const { return number == fb::DType::F64 ? fb::DType::F64 : fb::DType::F32; }

  bool allow(OperandType type, fb::DType dtype) const {
    switch (type) {
      case OperandType::number:
        return dtype == number;
      case OperandType::accumulator:
        return dtype == accumulator();
      case OperandType::wide:
        return dtype == number || dtype == accumulator();
      case OperandType::gradient:
        return dtype == gradient;
      case OperandType::moment:
        return dtype == moment;
      case OperandType::master:
        return (number == fb::DType::BF16 && dtype == fb::DType::U16) ||
               (number == fb::DType::F16 && dtype == fb::DType::F32);
      case OperandType::i32:
        return dtype == fb::DType::I32;
      case OperandType::u8:
        return dtype == fb::DType::U8;
      case OperandType::f64:
        return dtype == fb::DType::F64;
    }
    return false;
  }

  /// Parameters of 16 bits have masters.
  bool allow_absent(OperandType type) const {
    return type != OperandType::master || (number != fb::DType::BF16 && number != fb::DType::F16);
  }

  bool allow(const std::vector<TensorView>& operands, const std::vector<Operand>& declared) const {
    for (size_t i = 0; i < operands.size(); ++i) {
      const OperandType type = declared[std::min(i, declared.size() - 1)].type;
      if (operands[i].present() ? !allow(type, operands[i].dtype) : !allow_absent(type)) return false;
    }
    return true;
  }
};

KernelInfo make_row(std::string_view key, const char* signature, const char* in_place,
                    uint64_t (*workspace_bytes)(const KernelCall&)) {
  KernelInfo info;
  info.key = key;
  info.attributes = attributes_of(key);
  info.workspace = workspace_bytes;
  info.variants = variants_of(key);
  std::istringstream words(signature);
  info.inputs = parse_operands(words);
  info.outputs = parse_operands(words);
  std::istringstream pairs(in_place);
  for (std::string pair; pairs >> pair;) {
    const size_t sep = pair.find_first_of(":!");
    info.in_place.push_back({.output = info.output_index(pair.substr(0, sep)),
                             .input = info.input_index(pair.substr(sep + 1)),
                             .required = pair[sep] == '!'});
  }
  info.shapes = shapes_of(info);
  return info;
}

}  // namespace

bool KernelInfo::types_fit(const KernelCall& call) const {
  using enum fb::DType;
  for (const fb::DType number : {F32, BF16, F16, F64}) {
    const fb::DType accumulator = CallTypes{number, number, number}.accumulator();
    for (const fb::DType gradient : {number, accumulator})
      for (const fb::DType moment : {accumulator, accumulator == F32 ? BF16 : F64}) {
        const CallTypes types = {number, gradient, moment};
        if (types.allow(call.inputs, inputs) && types.allow(call.outputs, outputs)) return true;
      }
  }
  return false;
}

int KernelInfo::input_index(std::string_view name) const { return index_of(inputs, name); }
int KernelInfo::output_index(std::string_view name) const { return index_of(outputs, name); }

std::span<const KernelInfo> kernel_catalog() {
  static const std::vector<KernelInfo> rows = {
#define KERNEL(key, signature, in_place, bytes) make_row(#key, signature, in_place, workspace::bytes),
#include "kernels/catalog.def"
#undef KERNEL
  };
  return rows;
}

const KernelInfo* find_kernel(std::string_view key) {
  for (const KernelInfo& info : kernel_catalog())
    if (info.key == key) return &info;
  return nullptr;
}

}  // namespace moec
