// What the formats demand beyond their types, of specs and plans alike.
#pragma once

#include <flatbuffers/util.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model_generated.h"

namespace moec {

/// Whether this build knows the enumerator: files may hold any number of the enumeration's size.
template <class Enum>
constexpr bool is_known(Enum value) {
  return value <= Enum::MAX;
}

/// The name of the attribute that has an unknown enumerator; empty where there is none.
inline std::string_view unknown_attribute(const fb::OpUnion& op) {
  if (const fb::RopeT* rope = op.AsRope(); rope && !is_known(rope->style)) return "style";
  if (const fb::AuxLossT* loss = op.AsAuxLoss(); loss && !is_known(loss->form)) return "form";
  if (const fb::LoadBatchT* load = op.AsLoadBatch(); load && !is_known(load->sampling)) return "sampling";
  if (const fb::FusedLinearT* linear = op.AsFusedLinear(); linear && !is_known(linear->activation))
    return "activation";
  if (const fb::LrScheduleT* rate = op.AsLrSchedule();
      rate && rate->schedule && !is_known(rate->schedule->kind))
    return "schedule.kind";
  return {};
}

/// Whether a parameter may have the name, which checkpoints keep in JSON.
inline bool is_utf8(const std::string& name) {
  for (const char* at = name.c_str(); at != name.c_str() + name.size();)
    if (flatbuffers::FromUTF8(&at) < 0) return false;
  return true;
}

namespace detail {

/// Adds what is wrong with one part of a recipe to the faults of all.
class RecipeRules {
 public:
  explicit RecipeRules(std::vector<std::string>& faults) : faults_(faults) {}

  void check_sizes(const fb::RecipeT& recipe, uint32_t context) {
    constexpr uint32_t kMostGradAccum = 1u << 16;
    require(recipe.batch_size > 0, "batch_size must be at least 1");
    require(recipe.seq_len > 0, "seq_len must be at least 1");
    require(recipe.seq_len <= context, "seq_len is longer than the model's context");
    require(recipe.grad_accum > 0, "grad_accum must be at least 1");
    require(recipe.grad_accum <= kMostGradAccum, "grad_accum must be at most 65,536");
    require(is_known(recipe.sampling), "sampling must be RandomOffset, Epoch or Sequential");
  }

  void check_types(const fb::RecipeT& recipe) {
    using enum fb::DType;
    require(recipe.dtype == F32 || recipe.dtype == F64 || recipe.dtype == BF16 || recipe.dtype == F16,
            "dtype must be F32, F64, BF16 or F16");
    require(recipe.grad_dtype == F32 || recipe.grad_dtype == recipe.dtype,
            "grad_dtype must be F32 or the same as dtype");
    require(recipe.moment_dtype == F32 || (recipe.moment_dtype == BF16 && recipe.dtype != F64),
            "moment_dtype must be F32, or BF16 where dtype is not F64");
    if (recipe.loss_scale) check_loss_scale(*recipe.loss_scale, recipe.dtype);
  }

  void check_optimizer(const fb::RecipeT& recipe, const fb::AdamWT& adamw) {
    constexpr double kMostRate = 1e6;
    require(recipe.lr >= 0 && recipe.lr <= kMostRate, "lr must be a number from 0 to 1e6");
    require(recipe.clip_norm >= 0 && std::isfinite(recipe.clip_norm),
            "clip_norm must be a number that is not negative");
    require(is_known(recipe.weight_decay_scope), "weight_decay_scope must be Matrices or All");
    require(adamw.beta1 >= 0 && adamw.beta1 < 1, "adamw: beta1 must be in [0, 1)");
    require(adamw.beta2 >= 0 && adamw.beta2 < 1, "adamw: beta2 must be in [0, 1)");
    require(adamw.eps > 0 && std::isfinite(adamw.eps), "adamw: eps must be a positive number");
    require(adamw.weight_decay >= 0 && std::isfinite(adamw.weight_decay),
            "adamw: weight_decay must be a number that is not negative");
  }

  void check_schedule(const fb::ScheduleT& schedule) {
    const uint64_t warmup = schedule.warmup_steps, total = schedule.total_steps;
    require(is_known(schedule.kind), "schedule: kind must be Constant, Linear, Cosine or Wsd");
    require(schedule.kind == fb::ScheduleKind::Constant || total > warmup,
            "schedule: total_steps must exceed warmup_steps");
    require(schedule.kind != fb::ScheduleKind::Wsd || warmup + schedule.decay_steps <= total,
            "schedule: decay_steps does not fit between warm-up and end");
    require(schedule.min_ratio >= 0 && schedule.min_ratio <= 1, "schedule: min_ratio must be in [0, 1]");
  }

 private:
  void check_loss_scale(const fb::LossScaleT& scale, fb::DType dtype) {
    constexpr double kMostScale = 1e30;
    require(dtype == fb::DType::F16, "loss_scale is for dtype F16");
    require(scale.initial >= 1 && scale.initial <= kMostScale, "loss_scale: initial must be from 1 to 1e30");
    require(scale.growth_interval > 0, "loss_scale: growth_interval must be at least 1");
  }

  void require(bool condition, const char* fault) {
    if (!condition) faults_.emplace_back(fault);
  }

  std::vector<std::string>& faults_;
};

}  // namespace detail

/// What is wrong with the recipe of a model whose sequences may have `context` tokens: lines that start with
/// the name of the field. Absent tables have their defaults.
inline std::vector<std::string> recipe_faults(const fb::RecipeT& recipe, uint32_t context) {
  std::vector<std::string> faults;
  detail::RecipeRules rules(faults);
  rules.check_sizes(recipe, context);
  rules.check_types(recipe);
  rules.check_optimizer(recipe, recipe.adamw ? *recipe.adamw : fb::AdamWT());
  rules.check_schedule(recipe.schedule ? *recipe.schedule : fb::ScheduleT());
  return faults;
}

}  // namespace moec
