// A plan as text for people.
#pragma once

#include <string>
#include <vector>

#include "plan_generated.h"

namespace moec::tools {

/// "tokens per step", dtypes and the like of a plan's recipe, on one line.
std::string recipe_text(const fb::RecipeT& recipe);

/// Every setting of a recipe under the name that people know it by.
struct NamedText {
  std::string name, text;
};
std::vector<NamedText> recipe_rows(const fb::RecipeT& recipe);

/// What `moec SPEC` prints: parameters, memory and work of a step.
std::string summary(const fb::PlanT& plan);

/// What `moec explain` prints: memory by kind, the peak of every program and what is live there, and the cost
/// of a step by kernel.
std::string explanation(const fb::PlanT& plan);

}  // namespace moec::tools
