#include "bench/measure.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace moec::bench {
namespace {

/// Of the shortest kernels there are millions of runs; the median is of about this many, evenly spread.
constexpr int64_t kSamples = 1 << 16;

}  // namespace

Result<Times> measure(benchmark::State& state, const Lane& lane, const Work& work,
                      const std::function<Result<double>()>& run, int runs, const char* utilisation) {
  const int64_t stride = state.max_iterations / kSamples + 1;
  std::vector<double> samples;
  double fastest = std::numeric_limits<double>::infinity();
  int64_t calls = 0;
  while (state.KeepRunningBatch(runs)) {
    MOEC_ASSIGN_OR_RETURN(const double seconds, run());
    state.SetIterationTime(seconds * runs);
    fastest = std::min(fastest, seconds);
    if (calls++ % stride == 0) samples.push_back(seconds);
  }
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  const Times times = {.median = *middle, .fastest = fastest};

  state.SetLabel(lane.name());
  state.counters["median_us"] = 1e6 * times.median;
  state.counters["min_us"] = 1e6 * times.fastest;
  state.counters["GFLOP/s"] = work.flops / times.median / 1e9;
  state.counters["GB/s"] = work.bytes / times.median / 1e9;
  state.counters[utilisation] = 100 * work.flops / times.median / lane.ceilings().flops;
  state.counters["%copy"] = 100 * work.bytes / times.median / lane.ceilings().bytes;
  return times;
}

}  // namespace moec::bench
