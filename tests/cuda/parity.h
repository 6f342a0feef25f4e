// Samples on the GPU against the CPU device.
#pragma once

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/op_harness.h"

namespace moec::test {

struct Storage {
  const char* name;
  Precision precision;
  /// Relative error that is rounding, whatever the CPU's is.
  double rounding;
};

inline constexpr Storage kF64{"f64", {fb::DType::F64, fb::DType::F64}, 1e-12};
inline constexpr Storage kF32{"f32", {fb::DType::F32, fb::DType::F32}, 1e-6};
inline constexpr Storage kBf16{"bf16", {fb::DType::BF16, fb::DType::BF16}, 4e-3};
inline constexpr Storage kBf16WithF32Gradients{
    "bf16, f32 gradients", {fb::DType::BF16, fb::DType::F32}, 4e-3};
inline constexpr Storage kF16{"f16", {fb::DType::F16, fb::DType::F16}, 5e-4};
inline constexpr Storage kF16WithF32Gradients{"f16, f32 gradients", {fb::DType::F16, fb::DType::F32}, 5e-4};

/// Outputs and gradients of random values, twice: the same bits, and errors against f64 at most three times
/// those of the CPU in the same precision, or of rounding.
void check_parity(OpHarness& gpu, const Sample& sample, const Storage& storage);

/// For the memory checkers: activations as allocated, which a NaN could not tell from what a kernel wrote.
inline constexpr runtime::MemoryOptions kUnset{.leave_activations_unset = true};

/// Outputs and gradients of random values are finite.
void check_finite(OpHarness& gpu);

/// Problems too large for central differences: heads that the tensor cores' kernels take whole, over several
/// tiles, ragged, with groups that do and do not divide a tile.
std::vector<Sample> wide_attention_samples();

/// The same of experts: rows that TMA can map, several tiles, ragged, empty.
std::vector<Sample> wide_expert_samples();

/// Calls check(sample) for the samples of every op.
template <class Check>
void for_each_sample(Check&& check) {
  for (const OpDef* def : op_table()) {
    CAPTURE(def->key);
    if (def->samples == nullptr) continue;
    for (const Sample& sample : def->samples()) check(sample);
  }
}

}  // namespace moec::test
