// Every op's samples on the GPU: as exact as the CPU device against f64, the same bits every time.
#include "tests/cuda/parity.h"

#include <doctest/doctest.h>

#include "tests/cuda/gpu.h"

namespace moec::test {
namespace {

void check_sample(const Sample& sample, const Storage& storage) {
  CAPTURE(sample.name);
  OpHarness gpu(sample, storage.precision, cuda_device());
  check_parity(gpu, sample, storage);
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("every op's samples equal the reference") {
  Storage storage = kF64;
  SUBCASE("f64") { storage = kF64; }
  SUBCASE("f32") { storage = kF32; }
  SUBCASE("bf16") { storage = kBf16; }
  SUBCASE("bf16 with f32 gradients") { storage = kBf16WithF32Gradients; }
  SUBCASE("f16") { storage = kF16; }
  SUBCASE("f16 with f32 gradients") { storage = kF16WithF32Gradients; }
  CAPTURE(storage.name);
  for_each_sample([&](const Sample& sample) { check_sample(sample, storage); });
}

TEST_CASE("attention of wide heads equals the reference") {
  for (const Storage& storage : {kF32, kBf16})
    for (const Sample& sample : wide_attention_samples()) check_sample(sample, storage);
}

TEST_CASE("experts of wide rows equal the reference") {
  for (const Storage& storage : {kF32, kBf16, kBf16WithF32Gradients})
    for (const Sample& sample : wide_expert_samples()) check_sample(sample, storage);
}

TEST_CASE("every op's samples run on memory that nobody has written") {
  for (const Storage& storage : {kF32, kBf16, kF16})
    for_each_sample([&](const Sample& sample) {
      OpHarness gpu(sample, storage.precision, cuda_device(), kUnset);
      check_finite(gpu);
    });
}

TEST_SUITE_END();

}  // namespace moec::test
