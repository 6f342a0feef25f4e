// Names of calls in rows.
#pragma once

#include <string>

#include "runtime/plan.h"

namespace moec::bench {

/// "kernel/rmsnorm/moe-tiny/f32[8,128,64]".
std::string row_name(const runtime::LoadedPlan& plan, const fb::InstructionT& instruction);

}  // namespace moec::bench
