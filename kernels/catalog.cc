#include "kernels/catalog.h"

#include <sstream>

#include "kernels/workspace.h"

namespace moec {
namespace {

std::vector<Operand> parse_operands(std::istringstream& words) {
  std::vector<Operand> operands;
  for (std::string word; words >> word && word != "->";) {
    Operand operand;
    operand.optional = word.back() == '?';
    operand.variadic = word.back() == '*';
    if (operand.optional || operand.variadic) word.pop_back();
    operand.name = word;
    operands.push_back(operand);
  }
  return operands;
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

int index_of(const std::vector<Operand>& operands, std::string_view name) {
  for (size_t i = 0; i < operands.size(); ++i)
    if (operands[i].name == name) return static_cast<int>(i);
  return -1;
}

KernelInfo make_row(std::string_view key, const char* signature, const char* in_place,
                    uint64_t (*workspace_bytes)(const KernelCall&)) {
  KernelInfo info;
  info.key = key;
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
  return info;
}

}  // namespace

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
