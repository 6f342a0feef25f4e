#include "runtime/pace.h"

#include <doctest/doctest.h>

#include <algorithm>

using moec::runtime::Pace;

namespace {

/// Past its first steps, which were slow.
Pace started_pace() {
  Pace pace(255, 16);
  for (int i = 0; i < 8; ++i) pace.step_took(0.05);
  return pace;
}

}  // namespace

TEST_CASE("the host runs a quarter of a second ahead, within what can be in flight") {
  Pace pace = started_pace();
  CHECK(pace.most_in_flight() == 2);
  CHECK(pace.sleep_seconds(2) < 0.001);
  pace.step_took(0.01);
  CHECK(pace.most_in_flight() == 25);
  pace.step_took(0.0004);
  CHECK(pace.most_in_flight() == 255);
  Pace slow = started_pace();
  slow.step_took(1);
  CHECK(slow.most_in_flight() == 2);
}

TEST_CASE("the host sleeps for half of the work in flight, whatever a step that waited for it took") {
  Pace pace = started_pace();
  pace.step_took(0.0004);
  CHECK(pace.sleep_seconds(100) == doctest::Approx(0.02));
  pace.step_took(0.1);
  CHECK(pace.sleep_seconds(100) == doctest::Approx(0.02));
  CHECK(pace.most_in_flight() == 255);
}

TEST_CASE("a host that sleeps by its pace keeps the device at work") {
  // A device of 0.4 ms a step whose host looks only after it has slept, as the trainer does.
  constexpr double kStep = 0.0004;
  constexpr int kSteps = 4000;
  Pace pace(255, 16);
  double now = 0, device_free = 0;
  double ends[kSteps] = {};
  int submitted = 0, taken = 0;
  while (taken < kSteps) {
    if (submitted < kSteps && submitted - taken <= pace.most_in_flight()) {
      device_free = std::max(device_free, now) + kStep;
      ends[submitted++] = device_free;
    } else if (ends[taken] > now) {
      now += pace.sleep_seconds(submitted - taken);
    }
    for (; taken < submitted && ends[taken] <= now; ++taken)
      pace.step_took(taken == 0 ? 0.05 : ends[taken] - ends[taken - 1]);
  }
  CHECK(device_free < 1.02 * kSteps * kStep);
}

TEST_CASE("short steps share a read of metrics, long ones have their own") {
  Pace pace = started_pace();
  CHECK(pace.steps_a_read() == 1);
  pace.step_took(0.01);
  CHECK(pace.steps_a_read() == 1);
  pace.step_took(0.0008);
  CHECK(pace.steps_a_read() == 6);
  pace.step_took(0.00001);
  CHECK(pace.steps_a_read() == 16);
}
