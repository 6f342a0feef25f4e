// Complete search for a placement within a capacity.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/heuristics.h"
#include "planner/planner.h"

namespace moec::planner {

enum class Verdict { kPlaced, kImpossible, kBudgetSpent };

struct SearchResult {
  Verdict verdict = Verdict::kBudgetSpent;
  Layout layout;       // when placed
  uint64_t nodes = 0;  // partial placements visited
};

/// The search recurses once per block. With more blocks it does not start.
constexpr size_t kMostSearchedBlocks = 5'000;

/// Looks for offsets at which every block ends at or below `capacity`, until it finds them, has shown that
/// there are none, or has spent the budget. Every placement can be lowered to one in which each block lies at
/// 0 or on another block, so only those are searched (the canonical solutions of Moffitt, "MiniMalloc",
/// ASPLOS 2023). They grow upwards: in a valley - sections of one floor between higher ones - some block is
/// next over a given section, or the section stays empty up to the next offset that a block there can have.
/// The section that leaves the least choice is decided first, and sections that failed before count as more
/// urgent (Boussemart et al., "Boosting systematic search by weighting constraints", ECAI 2004); the search
/// restarts with other orders of the blocks at intervals of Luby et al. (1993). The result depends on the
/// arguments alone.
SearchResult search(const std::vector<Lifetime>& blocks, uint64_t capacity, Budget& budget);

}  // namespace moec::planner
