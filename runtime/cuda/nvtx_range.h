// Names on the host's time line for profilers that understand NVTX, such as Nsight Systems.
#pragma once

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define MOEC_HAS_NVTX 1
#endif

namespace moec::runtime {

/// What the host does from construction to destruction, by name; costs a branch where no profiler is attached
/// and nothing where the toolkit has no NVTX.
class NvtxRange {
 public:
#ifdef MOEC_HAS_NVTX
  explicit NvtxRange(const char* name) { nvtxRangePushA(name); }
  ~NvtxRange() { nvtxRangePop(); }
#else
  explicit NvtxRange(const char*) {}
#endif
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;
};

}  // namespace moec::runtime
