// Flags that override fields of a spec's recipe, shared by `moec SPEC` and `moerun train SPEC`.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compiler/compile.h"
#include "plan_generated.h"
#include "runtime/plan.h"
#include "runtime/status.h"

namespace moec::tools {

class RecipeFlags;

/// The plan at the path, or the one that the spec there compiles to with the flags, which a plan takes none
/// of.
Result<std::shared_ptr<const runtime::LoadedPlan>> open_plan_or_spec(const std::string& path,
                                                                     const RecipeFlags& flags);

/// Commands that try budgets themselves take none.
enum class MemoryBudgetFlag : uint8_t { kOffered, kNone };

class RecipeFlags {
 public:
  /// Adds the flags to a command, which keeps pointers to this object.
  void add_to(CLI::App& app, MemoryBudgetFlag memory_budget = MemoryBudgetFlag::kOffered);

  /// The first flag given that only a compilation can honour (all but --lr and --seed), empty when none.
  std::string compile_flag() const { return compile_flags_.empty() ? "" : compile_flags_.front(); }
  /// The first flag given, those two included, empty when none.
  std::string first_flag() const;
  std::optional<float> lr() const { return lr_; }
  std::optional<uint64_t> seed() const { return seed_; }

  /// The spec at `path` with the recipe changed as the flags say. Throws CompileError, with the place, for
  /// JSON that is no model, and for flags that the recipe would ignore.
  fb::ModelT read_spec(const std::string& path) const;
  /// `options` with what the flags say about compiling. Fails for a file of measured times that cannot be
  /// read.
  Result<CompileOptions> options(CompileOptions options = {}) const;

  /// Compiles the spec at `path`. An error names the file, a failure when the model does not fit its budget;
  /// throws CompileError as read_spec does.
  Result<fb::PlanT> compile_spec(const std::string& path, CompileOptions options = {}) const;

 private:
  /// A flag whose value `set` puts into the recipe.
  template <class T>
  void add(CLI::App& app, const std::string& name, const std::string& help, void (*set)(fb::RecipeT&, T));
  /// A flag with a word for each enumerator.
  template <class T>
  void add_enum(CLI::App& app, const std::string& name, const std::string& help,
                std::vector<std::pair<std::string, T>> words, void (*set)(fb::RecipeT&, T));

  std::vector<std::function<void(fb::RecipeT&)>> changes_;
  std::vector<std::string> compile_flags_;  // as given
  std::optional<float> lr_;
  std::optional<uint64_t> seed_;
  std::optional<int64_t> window_tokens_;
  std::string cost_model_;
  std::string measured_;  // file
};

}  // namespace moec::tools
