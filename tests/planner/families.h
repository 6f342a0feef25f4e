// Families of random placement problems.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

#include "planner/planner.h"

namespace moec::planner {

struct Family {
  const char* name;
  std::vector<Lifetime> (*make)(std::mt19937& random, size_t count);
};

std::vector<Lifetime> random_intervals(std::mt19937& random, size_t count);

/// Saved by layer after layer, freed in reverse order, with scratch in between.
std::vector<Lifetime> forward_and_backward(std::mt19937& random, size_t count);

std::vector<Lifetime> few_huge_many_small(std::mt19937& random, size_t count);

/// A full arena cut at random into rectangles: a placement at the lower bound exists.
std::vector<Lifetime> cut_rectangle(std::mt19937& random, size_t count);

constexpr Family kFamilies[] = {{"random intervals", random_intervals},
                                {"forward and backward", forward_and_backward},
                                {"few huge, many small", few_huge_many_small},
                                {"cut rectangle", cut_rectangle}};

}  // namespace moec::planner
