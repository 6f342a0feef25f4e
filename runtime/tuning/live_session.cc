#include "runtime/tuning/live_session.h"

#include <chrono>
#include <utility>

#include "runtime/tuning/live_model.h"

namespace moec::tuning {
namespace {

/// Tokens to train on: as many as a book has characters.
constexpr int64_t kDataTokens = 1 << 18;

}  // namespace

Result<runtime::Session> new_session(std::shared_ptr<const runtime::LoadedPlan> plan, const Lane& lane) {
  const fb::RecipeT& recipe = *plan->plan.recipe;
  MOEC_ASSIGN_OR_RETURN(auto device, lane.make_device());
  MOEC_ASSIGN_OR_RETURN(runtime::Session session,
                        runtime::Session::create(std::move(plan), std::move(device)));
  MOEC_RETURN_IF_ERROR(session.initialise(recipe.seed, recipe.lr));
  MOEC_RETURN_IF_ERROR(session.set_data(random_tokens(kDataTokens, session.vocab_size()), {}));
  return session;
}

Status warm_up(runtime::Session& session) {
  for (int i = 0; i < 3; ++i) MOEC_RETURN_IF_ERROR(seconds_per_step(session, 1).status());
  return {};
}

Result<double> seconds_per_step(runtime::Session& session, int steps) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < steps; ++i) MOEC_RETURN_IF_ERROR(session.train_step());
  MOEC_RETURN_IF_ERROR(session.device().wait());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / steps;
}

Work work_of_step(const runtime::LoadedPlan& plan) {
  const runtime::ProgramCost micro_batch = runtime::cost_of(*plan.program(fb::ProgramKind::Accumulate));
  const runtime::ProgramCost update = runtime::cost_of(*plan.program(fb::ProgramKind::Apply));
  const double repeats = plan.plan.recipe->grad_accum;
  return {.flops = repeats * static_cast<double>(micro_batch.flops) + static_cast<double>(update.flops),
          .bytes = repeats * static_cast<double>(micro_batch.bytes) + static_cast<double>(update.bytes)};
}

}  // namespace moec::tuning
