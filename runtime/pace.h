#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace moec::runtime {

/// How far the host runs ahead of the device, how long it sleeps when it is that far ahead, and how often it
/// asks for metrics.
///
/// Judged by the shortest step so far. A step during which the device had to wait for the host looks long;
/// were it the measure, the host would sleep longer because it slept too long. The first steps, in which a
/// device gets going, do not count.
class Pace {
 public:
  /// `most_steps`: steps that can be in flight, at least 2; `most_steps_a_read`: those of one read, at
  /// least 1.
  Pace(int64_t most_steps, int64_t most_steps_a_read)
      : most_steps_(static_cast<double>(most_steps)),
        most_steps_a_read_(static_cast<double>(most_steps_a_read)) {}

  /// The time between the ends of two steps on the device.
  void step_took(double seconds) {
    if (++steps_ > kFirstSteps) shortest_ = std::min(shortest_, seconds);
  }

  /// Steps in flight, at most: kSecondsInFlight of work; 2 as long as no step counts.
  int64_t most_in_flight() const {
    return static_cast<int64_t>(std::clamp(kSecondsInFlight / shortest_, 2.0, most_steps_));
  }

  /// Steps whose metrics come in one read: kSecondsARead of work; 1 as long as no step counts.
  int64_t steps_a_read() const {
    return static_cast<int64_t>(std::clamp(kSecondsARead / shortest_, 1.0, most_steps_a_read_));
  }

  /// Half of the time that steps in flight take at least, in seconds: the device has work for the other half.
  /// The least as long as no step counts.
  double sleep_seconds(int64_t in_flight) const {
    constexpr double kLeast = 20e-6, kMost = 0.1;
    if (std::isinf(shortest_)) return kLeast;
    return std::clamp(0.5 * static_cast<double>(in_flight) * shortest_, kLeast, kMost);
  }

 private:
  /// Enough to never let the device wait, little enough to stop soon.
  static constexpr double kSecondsInFlight = 0.25;
  /// So that a log is late by no more than nobody sees.
  static constexpr double kSecondsARead = 0.005;
  static constexpr int kFirstSteps = 8;

  double most_steps_;
  double most_steps_a_read_;
  int64_t steps_ = 0;                                          // timed
  double shortest_ = std::numeric_limits<double>::infinity();  // seconds
};

}  // namespace moec::runtime
