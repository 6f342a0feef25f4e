#include "runtime/tuning/lane.h"

#include <cblas.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "runtime/cuda/cuda_ceilings.h"
#include "runtime/cuda/cuda_device.h"

namespace moec::tuning {
namespace {

constexpr int kRuns = 5;

/// On a GPU: operands of successive runs together, more than twice its L2 cache; more copies than this are of
/// operands so small that the launch is all the time. And a time in which one launch of a graph is lost.
constexpr uint64_t kRotatedBytes = uint64_t{160} << 20;
constexpr uint64_t kMostCopies = 128;
constexpr double kSeconds = 2e-3;
constexpr double kLaunchSeconds = 2e-6;
constexpr int kMostRuns = 512;

/// Seconds of the fastest of a few runs, after one to warm up.
template <class Run>
double fastest(Run&& run) {
  run();
  double best = 0;
  for (int i = 0; i < kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = i == 0 ? elapsed.count() : std::min(best, elapsed.count());
  }
  return best;
}

/// Leaves OpenBLAS with one thread, as the kernels want it.
double matmul_rate(int threads) {
  constexpr size_t kSize = 2048;
  constexpr double kFlops = 2.0 * kSize * kSize * kSize;
  const std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f);
  std::vector<float> c(kSize * kSize);
  openblas_set_num_threads(threads);
  const double seconds = fastest([&] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, kSize, kSize, kSize, 1, a.data(), kSize, b.data(),
                kSize, 0, c.data(), kSize);
  });
  openblas_set_num_threads(1);
  return kFlops / seconds;
}

double copy_rate(int threads) {
  constexpr size_t kBytes = size_t{256} << 20;
  const std::vector<std::byte> from(kBytes, std::byte{1});
  std::vector<std::byte> to(kBytes);
  const size_t part = kBytes / static_cast<size_t>(threads);
  const double seconds = fastest([&] {
    std::vector<std::jthread> others;
    for (size_t i = 1; i < static_cast<size_t>(threads); ++i)
      others.emplace_back([&, i] { std::memcpy(to.data() + i * part, from.data() + i * part, part); });
    std::memcpy(to.data(), from.data(), part);
  });
  return 2.0 * static_cast<double>(part) * threads / seconds;
}

}  // namespace

Lane Lane::cpu(int threads) {
  moec::cpu::set_threads(threads);
  const int used = moec::cpu::threads();
  return {used, {.flops = matmul_rate(used), .bytes = copy_rate(used)}};
}

Result<Lane> Lane::cuda() {
  MOEC_ASSIGN_OR_RETURN(const Ceilings ceilings, runtime::measure_cuda_ceilings());
  return Lane(0, ceilings);
}

std::string Lane::name() const {
  if (threads_ == 0) return "cuda";
  return fmt::format("cpu, {} thread{}", threads_, threads_ == 1 ? "" : "s");
}

std::string Lane::best() const {
  return fmt::format("{:.1f} GFLOP/s {} matmul, {:.1f} GB/s copy", ceilings_.flops / 1e9,
                     threads_ == 0 ? "bf16" : "f32", ceilings_.bytes / 1e9);
}

Result<std::unique_ptr<runtime::Device>> Lane::make_device() const {
  if (threads_ == 0) return runtime::make_cuda_device();
  return runtime::make_cpu_device();
}

void Lane::enter() const {
  if (threads_ > 0) moec::cpu::set_threads(threads_);
}

Repetition Lane::repetition(const Work& work, uint64_t operand_bytes) const {
  if (threads_ > 0) return {};
  const uint64_t rotated = kRotatedBytes / std::max<uint64_t>(1, operand_bytes) + 1;
  const int copies = static_cast<int>(std::min(kMostCopies, rotated));
  const double seconds =
      kLaunchSeconds + std::max(work.flops / ceilings_.flops, work.bytes / ceilings_.bytes);
  const int runs = static_cast<int>(std::min<double>(kMostRuns, std::ceil(kSeconds / seconds)));
  return {.copies = copies, .runs = std::max(copies, runs)};
}

}  // namespace moec::tuning
