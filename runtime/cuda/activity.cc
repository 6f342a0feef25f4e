#include "runtime/cuda/activity.h"

#include <cupti.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <string_view>
#include <type_traits>
#include <utility>

namespace moec::runtime {
namespace {

/// CUPTI's functions, by their own names.
struct Cupti {
  decltype(&::cuptiActivityRegisterCallbacks) cuptiActivityRegisterCallbacks = nullptr;
  decltype(&::cuptiActivityEnable) cuptiActivityEnable = nullptr;
  decltype(&::cuptiActivityDisable) cuptiActivityDisable = nullptr;
  decltype(&::cuptiActivityFlushAll) cuptiActivityFlushAll = nullptr;
  decltype(&::cuptiActivityGetNextRecord) cuptiActivityGetNextRecord = nullptr;
  decltype(&::cuptiGetCallbackName) cuptiGetCallbackName = nullptr;
  decltype(&::cuptiGetTimestamp) cuptiGetTimestamp = nullptr;
  decltype(&::cuptiGetResultString) cuptiGetResultString = nullptr;

  /// Never unloaded, as CUPTI does not support it.
  Status load() {
    void* library = ::dlopen(MOEC_CUPTI_SONAME, RTLD_NOW);
    if (library == nullptr) library = ::dlopen(MOEC_CUPTI_LIBRARY, RTLD_NOW);
    if (library == nullptr) return failure(fmt::format("CUPTI: {}", ::dlerror()));
    bool complete = true;
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      complete = complete && function != nullptr;
    };
    find("cuptiActivityRegisterCallbacks", cuptiActivityRegisterCallbacks);
    find("cuptiActivityEnable", cuptiActivityEnable);
    find("cuptiActivityDisable", cuptiActivityDisable);
    find("cuptiActivityFlushAll", cuptiActivityFlushAll);
    find("cuptiActivityGetNextRecord", cuptiActivityGetNextRecord);
    find("cuptiGetCallbackName", cuptiGetCallbackName);
    find("cuptiGetTimestamp", cuptiGetTimestamp);
    find("cuptiGetResultString", cuptiGetResultString);
    return complete ? Status() : failure("CUPTI: the library lacks functions of the activity interface");
  }

  Status check(CUptiResult result, const char* call) const {
    if (result == CUPTI_SUCCESS) return {};
    const char* text = "unknown error";
    static_cast<void>(cuptiGetResultString(result, &text));
    return failure(fmt::format("{}: {}", call, text));
  }
};

/// Where CUPTI's callbacks, which are given no data of ours, put what they get. They come on CUPTI's threads.
struct Sink {
  std::mutex mutex;
  Cupti cupti;
  bool registered = false;
  uint64_t start = 0;  // of the recording, in CUPTI's nanoseconds
  std::vector<Activity> activities;

  double seconds(uint64_t nanoseconds) const {
    return 1e-9 * static_cast<double>(static_cast<int64_t>(nanoseconds - start));
  }
};

Sink& sink() {
  static Sink instance;
  return instance;
}

constexpr size_t kBufferBytes = size_t{4} << 20;

void give_buffer(uint8_t** buffer, size_t* size, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *most_records = 0;  // as many as fit
}

template <class Record>
void add(Sink& to, Activity::Kind kind, const Record& record) {
  to.activities.push_back({kind, record.correlationId, to.seconds(record.start), to.seconds(record.end)});
}

/// A node of a graph; other work has no node.
template <class Record>
void add_node(Sink& to, const Record& record) {
  if (record.graphNodeId != 0) add(to, Activity::Kind::kNode, record);
}

/// Whether the host waits for an asynchronous copy: of pageable memory, only little is set aside.
bool waits(const CUpti_ActivityMemcpy5& copy) {
  constexpr uint64_t kSetAside = 64 << 10;
  return copy.dstKind == CUPTI_ACTIVITY_MEMORY_KIND_PAGEABLE ||
         (copy.srcKind == CUPTI_ACTIVITY_MEMORY_KIND_PAGEABLE && copy.bytes > kSetAside);
}

/// Whether the host waits in a call of the CUDA runtime: to synchronise, for a copy that is not asynchronous,
/// or because memory that is allocated or freed may be in use.
bool waits(const Cupti& cupti, const CUpti_ActivityAPI& call) {
  const char* name = nullptr;
  if (cupti.cuptiGetCallbackName(CUPTI_CB_DOMAIN_RUNTIME_API, call.cbid, &name) != CUPTI_SUCCESS)
    return false;
  const std::string_view function = name;
  if (function.find("Async") != function.npos) return false;
  constexpr std::string_view kWaiting[] = {"cudaDeviceSynchronize",
                                           "cudaStreamSynchronize",
                                           "cudaEventSynchronize",
                                           "cudaMemcpy",
                                           "cudaMalloc",
                                           "cudaHostAlloc",
                                           "cudaFree"};
  return std::any_of(std::begin(kWaiting), std::end(kWaiting),
                     [&](std::string_view start) { return function.starts_with(start); });
}

template <class Record>
const Record& as(const CUpti_Activity* record) {
  return *reinterpret_cast<const Record*>(record);
}

void add_record(Sink& to, const CUpti_Activity* record) {
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_GRAPH_TRACE:
      add(to, Activity::Kind::kReplay, as<CUpti_ActivityGraphTrace>(record));
      break;
    case CUPTI_ACTIVITY_KIND_RUNTIME: {
      const auto& call = as<CUpti_ActivityAPI>(record);
      if (waits(to.cupti, call)) add(to, Activity::Kind::kHostWait, call);
      break;
    }
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
      add_node(to, as<CUpti_ActivityKernel9>(record));
      break;
    case CUPTI_ACTIVITY_KIND_MEMSET:
      add_node(to, as<CUpti_ActivityMemset4>(record));
      break;
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto& copy = as<CUpti_ActivityMemcpy5>(record);
      add_node(to, copy);
      if (copy.graphNodeId == 0 && waits(copy)) add(to, Activity::Kind::kHostWait, copy);
      break;
    }
    default:
      break;
  }
}

void take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid_bytes) {
  Sink& to = sink();
  {
    const std::lock_guard lock(to.mutex);
    CUpti_Activity* record = nullptr;
    while (to.cupti.cuptiActivityGetNextRecord(buffer, valid_bytes, &record) == CUPTI_SUCCESS)
      add_record(to, record);
  }
  std::free(buffer);
}

class CuptiRecorder final : public ActivityRecorder {
 public:
  explicit CuptiRecorder(const Cupti& cupti) : cupti_(cupti) {}

  Status start(TimelineDetail detail) override {
    if (detail == TimelineDetail::kReplays)
      kinds_ = {CUPTI_ACTIVITY_KIND_GRAPH_TRACE, CUPTI_ACTIVITY_KIND_RUNTIME, CUPTI_ACTIVITY_KIND_MEMCPY};
    else
      kinds_ = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMSET,
                CUPTI_ACTIVITY_KIND_MEMCPY};
    MOEC_RETURN_IF_ERROR(register_callbacks());
    for (const CUpti_ActivityKind kind : kinds_)
      MOEC_RETURN_IF_ERROR(cupti_.check(cupti_.cuptiActivityEnable(kind), "cuptiActivityEnable"));
    const std::lock_guard lock(sink().mutex);
    sink().start = timestamp();
    sink().activities.clear();
    return {};
  }

  double now() const override { return sink().seconds(timestamp()); }

  Result<std::vector<Activity>> stop() override {
    MOEC_RETURN_IF_ERROR(cupti_.check(cupti_.cuptiActivityFlushAll(0), "cuptiActivityFlushAll"));
    for (const CUpti_ActivityKind kind : kinds_)
      MOEC_RETURN_IF_ERROR(cupti_.check(cupti_.cuptiActivityDisable(kind), "cuptiActivityDisable"));
    MOEC_RETURN_IF_ERROR(cupti_.check(cupti_.cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED),
                                      "cuptiActivityFlushAll"));
    const std::lock_guard lock(sink().mutex);
    return std::exchange(sink().activities, {});
  }

 private:
  /// Once a process. From then on CUPTI is in the way of every call, recording or not, which is why it comes
  /// with the first recording.
  Status register_callbacks() {
    const std::lock_guard lock(sink().mutex);
    if (sink().registered) return {};
    MOEC_RETURN_IF_ERROR(cupti_.check(cupti_.cuptiActivityRegisterCallbacks(give_buffer, take_buffer),
                                      "cuptiActivityRegisterCallbacks"));
    sink().registered = true;
    return {};
  }

  uint64_t timestamp() const {
    uint64_t now = 0;
    static_cast<void>(cupti_.cuptiGetTimestamp(&now));
    return now;
  }

  const Cupti& cupti_;
  std::vector<CUpti_ActivityKind> kinds_;
};

}  // namespace

Result<std::unique_ptr<ActivityRecorder>> ActivityRecorder::create() {
  Sink& to = sink();
  const std::lock_guard lock(to.mutex);
  if (to.cupti.cuptiGetTimestamp == nullptr) {
    Cupti loaded;
    MOEC_RETURN_IF_ERROR(loaded.load());
    to.cupti = loaded;
  }
  return std::unique_ptr<ActivityRecorder>(std::make_unique<CuptiRecorder>(to.cupti));
}

}  // namespace moec::runtime
