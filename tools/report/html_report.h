// A plan as a web page.
#pragma once

#include <string>

#include "plan_generated.h"

namespace moec::tools {

/// What `moec explain --html` writes: page.html with its style, its scripts and the plan's data inside. It
/// loads nothing from anywhere.
std::string html_report(const fb::PlanT& plan);

}  // namespace moec::tools
