// Sound little plans over real kernels, for the validator to accept and for tests to damage.
#pragma once

#include <cstdint>
#include <memory>

#include "plan_generated.h"

namespace moec::planner {

/// A plan with the programs init, accumulate (`instructions` of them, drawn from `seed`: elementwise ops,
/// norms, linear layers and gradients, placed by plan_memory) and apply, over parameters, gradients, moments
/// and state.
std::unique_ptr<fb::PlanT> sample_plan(uint32_t seed, int instructions);

}  // namespace moec::planner
