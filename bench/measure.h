// The numbers of a row.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>

#include "runtime/status.h"
#include "runtime/tuning/lane.h"

namespace moec::bench {

using tuning::Lane;
using tuning::Work;

/// Seconds of one run.
struct Times {
  double median = 0;
  double fastest = 0;
};

/// Repeats `run`, which does the work `runs` times and returns the seconds of one, until Google Benchmark has
/// enough. Counters of the row:
/// median and fastest run in microseconds, GFLOP/s and GB/s of the median, and both in per cent of the lane's
/// ceilings
/// (`utilisation` names the one of FLOP/s, and "%copy"). Operands that fit a cache can be faster than a copy.
Result<Times> measure(benchmark::State& state, const Lane& lane, const Work& work,
                      const std::function<Result<double>()>& run, int runs = 1,
                      const char* utilisation = "%matmul");

}  // namespace moec::bench
