// Where a row runs: a device, how much of it, and what that part can do at best.
#pragma once

#include <memory>
#include <string>

#include "runtime/device.h"

namespace moec::bench {

/// The best that was measured, per second.
struct Ceilings {
  double flops = 0;
  double bytes = 0;
};

class Lane {
 public:
  /// Measures `threads` threads of the CPU (0: all cores), for about a second: FLOP/s of OpenBLAS' f32
  /// product of 2048 cubed, bytes read and written per second by a copy that no cache holds.
  static Lane cpu(int threads);

  const Ceilings& ceilings() const { return ceilings_; }
  int threads() const { return threads_; }
  /// "cpu, 2 threads".
  std::string name() const;
  /// "190 GFLOP/s sgemm, 21 GB/s copy".
  std::string best() const;

  std::unique_ptr<runtime::Device> make_device() const;
  /// Makes devices use this lane's threads from now on.
  void enter() const;

 private:
  Lane(int threads, const Ceilings& ceilings) : threads_(threads), ceilings_(ceilings) {}

  int threads_;
  Ceilings ceilings_;
};

}  // namespace moec::bench
