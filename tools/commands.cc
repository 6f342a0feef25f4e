#include "tools/commands.h"

#include <utility>

namespace moec::tools {

Result<runtime::Session> open_session(std::shared_ptr<const runtime::LoadedPlan> plan,
                                      const DeviceFlags& flags) {
  MOEC_ASSIGN_OR_RETURN(auto device, make_device(flags));
  return runtime::Session::create(std::move(plan), std::move(device));
}

}  // namespace moec::tools
