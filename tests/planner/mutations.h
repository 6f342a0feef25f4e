// Ways to make a sound plan unsound; the validator has to reject every one.
#pragma once

#include <random>
#include <span>

#include "plan_generated.h"

namespace moec::planner {

using Random = std::mt19937;

struct Mutation {
  const char* name;
  /// Damages a plan whose second program is Accumulate; false where this draw finds nothing to damage.
  bool (*apply)(fb::PlanT& plan, Random& random);
};

std::span<const Mutation> mutations();

}  // namespace moec::planner
