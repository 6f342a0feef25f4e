// A plan as the data of the report's page.
#pragma once

#include <string>

#include "plan_generated.h"

namespace moec::tools {

/// JSON that plan.js reads: columns of numbers, texts as indices into one table. It holds no '<', so that no
/// name can end the script element it is embedded in; bytes that are no UTF-8 become U+FFFD.
std::string report_data(const fb::PlanT& plan);

}  // namespace moec::tools
