// Stands in for CUPTI where the toolkit does not have it.
#include "runtime/cuda/activity.h"

namespace moec::runtime {

Result<std::unique_ptr<ActivityRecorder>> ActivityRecorder::create() {
  return failure("this build has no CUPTI");
}

}  // namespace moec::runtime
