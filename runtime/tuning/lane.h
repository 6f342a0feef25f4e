// Where a row runs: a device, how much of it, and what that part can do at best.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/ceilings.h"
#include "runtime/device.h"
#include "runtime/status.h"

namespace moec::tuning {

using runtime::Ceilings;

/// Of one run: floating-point operations, and bytes with every operand counted once.
struct Work {
  double flops = 0;
  double bytes = 0;
};

/// How a kernel is run to take its time: `runs` runs are submitted together, and take turns on `copies` sets
/// of operands.
struct Repetition {
  int copies = 1;
  int runs = 1;
};

class Lane {
 public:
  /// Measures `threads` threads of the CPU (0: all cores), for about a second: FLOP/s of OpenBLAS' f32
  /// product of 2048 cubed, bytes read and written per second by a copy that no cache holds.
  static Lane cpu(int threads);

  /// Measures the current GPU: FLOP/s of cuBLAS' bf16 product of 8192 cubed, bytes read and written per
  /// second by a copy of 1 GiB. Fails where there is no GPU and in a build without CUDA.
  static Result<Lane> cuda();

  const Ceilings& ceilings() const { return ceilings_; }
  /// "cpu, 2 threads", "cuda".
  std::string name() const;
  /// "190 GFLOP/s f32 matmul, 21.0 GB/s copy".
  std::string best() const;

  Result<std::unique_ptr<runtime::Device>> make_device() const;
  /// Makes devices use this lane's threads from now on.
  void enter() const;

  /// Whether a step that is repeated is captured into a graph before its second run.
  bool captures() const { return threads_ == 0; }

  /// Whether some kernels can be computed in several ways (kernels/variants.def).
  bool has_variants() const { return threads_ == 0; }

  /// For a kernel that does `work` on `operand_bytes` of memory. On a GPU kernels follow one another without
  /// gaps and find nothing in the L2 cache that the run before left there.
  Repetition repetition(const Work& work, uint64_t operand_bytes) const;

 private:
  /// `threads` is 0 on a GPU.
  Lane(int threads, const Ceilings& ceilings) : threads_(threads), ceilings_(ceilings) {}

  int threads_;
  Ceilings ceilings_;
};

}  // namespace moec::tuning
