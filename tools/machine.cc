#include "tools/machine.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"

namespace moec::tools {

double cpu_matmul_rate(fb::DType dtype) {
  constexpr int64_t kSize = 1024;
  constexpr int kRuns = 10;
  const fb::DType compute = dtype == fb::DType::F64 ? fb::DType::F64 : fb::DType::F32;
  std::vector<double> memory[3];  // x, weight, y; doubles hold either type
  KernelCall call;
  const auto matrix = [&](std::vector<double>& data) {
    data.assign(kSize * kSize, 0.0);
    return TensorView{.data = data.data(), .dtype = compute, .rank = 2, .shape = {kSize, kSize}};
  };
  call.inputs = {matrix(memory[0]), matrix(memory[1]), TensorView()};
  call.outputs = {matrix(memory[2])};
  fb::OpUnion op;
  fb::LinearT attrs;
  attrs.out_features = kSize;
  op.Set(std::move(attrs));
  call.op = &op;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    cpu::linear(call);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / elapsed.count());
  }
  return best;
}

}  // namespace moec::tools
