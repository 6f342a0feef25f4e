// The catalog of kernels as data: what a plan may call, with which operands. It knows no device; the
// compiler, the validator and the loader read it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernel.h"
#include "kernels/operand_shapes.h"

namespace moec {

/// What an operand holds (operand_types.def).
enum class OperandType : uint8_t { number, accumulator, wide, gradient, moment, master, i32, u8, f64 };

struct Operand {
  std::string name;
  bool optional = false;
  bool variadic = false;  // stands for any number of operands; the last of its list
  OperandType type = OperandType::number;
};

/// An output that may (or, when `required`, must) share its memory with an input.
struct InPlace {
  int output = 0;
  int input = 0;
  bool required = false;
};

struct KernelInfo {
  std::string_view key;
  fb::Op attributes = fb::Op::NONE;  // the table of them that it reads
  std::vector<Operand> inputs;
  std::vector<Operand> outputs;
  std::vector<InPlace> in_place;
  std::vector<std::string> variants;  // names of kernels/variants.def
  ShapeRule shapes;
  /// Bytes of workspace for a call with these operand shapes; data pointers are not read.
  uint64_t (*workspace)(const KernelCall& call) = nullptr;

  /// Index of the operand with this name, -1 when there is none.
  int input_index(std::string_view name) const;
  int output_index(std::string_view name) const;

  /// Whether operands of these types can be those of one call; absent ones fit, but for masters of 16 bits.
  bool types_fit(const KernelCall& call) const;
};

/// All kernels, in the order of catalog.def.
std::span<const KernelInfo> kernel_catalog();

/// The row of `key`, nullptr when there is none.
const KernelInfo* find_kernel(std::string_view key);

}  // namespace moec
