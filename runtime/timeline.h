// When a device did what, as it was recorded between Device::start_timeline and stop_timeline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace moec::runtime {

/// What a recording looks at. The finer it looks, the more the recording itself costs.
enum class TimelineDetail {
  kReplays,       // begin and end of what was submitted as a whole, and the waits of the host
  kInstructions,  // begin and end of every instruction
};

/// Seconds from the start of the recording.
struct TimeSpan {
  double begin = 0;
  double end = 0;
};

struct InstructionSpan {
  TimeSpan time;
  size_t program = 0;  // both are places in the plan
  size_t instruction = 0;
};

struct Timeline {
  std::string method;                         // where the times come from
  std::vector<TimeSpan> replays;              // of kReplays, in order of time
  int64_t host_waits = 0;                     // of kReplays: calls in which the host waited for the device
  std::vector<InstructionSpan> instructions;  // of kInstructions, one after the other, without overlap
};

}  // namespace moec::runtime
