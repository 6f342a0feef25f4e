// Whole models on the CPU device against PyTorch.
#include <doctest/doctest.h>

#include "tests/support/model_oracle.h"

namespace moec::test {

TEST_CASE("logits equal PyTorch's") {
  check_logits(runtime::make_cpu_device, fb::DType::F64, 1e-7);
  check_logits(runtime::make_cpu_device, fb::DType::F32, 1e-5);
}

TEST_CASE("loss and every gradient equal PyTorch's") {
  check_gradients(runtime::make_cpu_device, fb::DType::F64, 1e-9);
  check_gradients(runtime::make_cpu_device, fb::DType::F32, 1e-5);
}

TEST_CASE("twenty AdamW steps equal PyTorch's") {
  check_adamw_steps(runtime::make_cpu_device, fb::DType::F64, 1e-9);
  check_adamw_steps(runtime::make_cpu_device, fb::DType::F32, 1e-5);
}

}  // namespace moec::test
