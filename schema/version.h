// Versions of the formats: what this build writes, and the newest that it reads (schema/README.md).
#pragma once

#include <cstdint>

namespace moec {

constexpr uint32_t kModelVersion = 1;
constexpr uint32_t kPlanVersion = 1;

}  // namespace moec
