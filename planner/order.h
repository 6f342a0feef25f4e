// The order of steps: any that keeps the dependences computes the same, but not in the same memory.
#pragma once

#include <utility>
#include <vector>

#include "planner/planner.h"

namespace moec::planner {

/// An order of the steps that frees memory early, as indices of steps. Steps follow those that write what
/// they read, and `second` follows `first` for each pair in `before`. Steps that leave no more bytes live
/// than they find come as soon as they can, those that free most first, next to the steps whose results they
/// consume; the others keep their order. The given order must keep the dependences, too.
std::vector<int> order_steps(const Problem& problem, const std::vector<std::pair<int, int>>& before);

}  // namespace moec::planner
