// Whole models on the GPU against PyTorch.
#include <doctest/doctest.h>

#include "tests/cuda/gpu.h"
#include "tests/support/model_oracle.h"

namespace moec::test {
namespace {

const MakeDevice kCuda = [] { return cuda_device(); };

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("logits equal PyTorch's") {
  check_logits(kCuda, fb::DType::F64, 1e-7);
  check_logits(kCuda, fb::DType::F32, 1e-5);
}

TEST_CASE("loss and every gradient equal PyTorch's") {
  check_gradients(kCuda, fb::DType::F64, 1e-9);
  check_gradients(kCuda, fb::DType::F32, 1e-5);
}

TEST_CASE("twenty AdamW steps equal PyTorch's") {
  check_adamw_steps(kCuda, fb::DType::F64, 1e-9);
  check_adamw_steps(kCuda, fb::DType::F32, 1e-5);
}

TEST_SUITE_END();

}  // namespace moec::test
