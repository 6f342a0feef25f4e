// Versions of the formats (schema/README.md): what this build writes; the newest model and the only plan that
// it reads.
#pragma once

#include <cstdint>

namespace moec {

constexpr uint32_t kModelVersion = 1;
constexpr uint32_t kPlanVersion = 3;

}  // namespace moec
