// What the GPU did and when, from CUPTI, the toolkit's tracing library. It is loaded when it is first asked
// for.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/status.h"
#include "runtime/timeline.h"

namespace moec::runtime {

struct Activity {
  enum class Kind {
    kReplay,    // a graph, from its first node to its last
    kNode,      // a node of a graph
    kHostWait,  // a call in which the host waited for the device
  };
  Kind kind = Kind::kNode;
  uint32_t launch = 0;  // of a replay and its nodes; grows from launch to launch
  double begin = 0;     // seconds from the start of the recording
  double end = 0;
};

/// Records what this process does on GPUs. Of kReplays: replays and the host's waits; of kInstructions:
/// nodes. One recording at a time.
class ActivityRecorder {
 public:
  /// An error where CUPTI is not installed, or was not when this was built.
  static Result<std::unique_ptr<ActivityRecorder>> create();

  virtual ~ActivityRecorder() = default;
  virtual Status start(TimelineDetail detail) = 0;
  /// Seconds from the start of the recording.
  virtual double now() const = 0;
  /// The device must be idle.
  virtual Result<std::vector<Activity>> stop() = 0;
};

}  // namespace moec::runtime
