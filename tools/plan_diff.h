// Two plans side by side.
#pragma once

#include <string>

#include "plan_generated.h"

namespace moec::tools {

/// What `moec explain --diff` prints: the settings that differ, memory, the work of a step, the kernels whose
/// calls or costs differ (the largest change of time first), and the buffers at the peaks of accumulate that
/// only one plan has, or that differ in size.
std::string difference(const fb::PlanT& a, const fb::PlanT& b);

}  // namespace moec::tools
