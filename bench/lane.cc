#include "bench/lane.h"

#include <cblas.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"

namespace moec::bench {
namespace {

constexpr int kRuns = 5;

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
  constexpr int kSize = 2048;
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

std::string Lane::name() const { return fmt::format("cpu, {} thread{}", threads_, threads_ == 1 ? "" : "s"); }

std::string Lane::best() const {
  return fmt::format("{:.1f} GFLOP/s sgemm, {:.1f} GB/s copy", ceilings_.flops / 1e9, ceilings_.bytes / 1e9);
}

std::unique_ptr<runtime::Device> Lane::make_device() const { return runtime::make_cpu_device(); }

void Lane::enter() const { moec::cpu::set_threads(threads_); }

}  // namespace moec::bench
