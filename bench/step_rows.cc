#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "bench/live_model.h"
#include "bench/measure.h"
#include "bench/rows.h"
#include "runtime/session.h"

namespace moec::bench {
namespace {

using fb::ProgramKind;

/// Tokens to train on: as many as a book has characters.
constexpr int64_t kDataTokens = 1 << 18;
Work work_of_step(const runtime::LoadedPlan& plan) {
  const runtime::ProgramCost micro_batch = runtime::cost_of(*plan.program(ProgramKind::Accumulate));
  const runtime::ProgramCost update = runtime::cost_of(*plan.program(ProgramKind::Apply));
  const double repeats = plan.plan.recipe->grad_accum;
  return {.flops = repeats * static_cast<double>(micro_batch.flops) + static_cast<double>(update.flops),
          .bytes = repeats * static_cast<double>(micro_batch.bytes) + static_cast<double>(update.bytes)};
}

Result<double> timed_step(runtime::Session& session) {
  const auto start = std::chrono::steady_clock::now();
  MOEC_RETURN_IF_ERROR(session.train_step());
  MOEC_RETURN_IF_ERROR(session.device().wait());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count();
}

/// A session whose memory has been touched and whose threads are up.
struct Started {
  runtime::Session session;
  double second_step = 0;  // seconds
};

Result<Started> start(const Model& model, const Lane& lane) {
  MOEC_ASSIGN_OR_RETURN(auto device, lane.make_device());
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, runtime::Session::create(model.plan, std::move(device)));
  const fb::RecipeT& recipe = *model.plan->plan.recipe;
  MOEC_RETURN_IF_ERROR(session.initialise(recipe.seed, recipe.lr));
  MOEC_RETURN_IF_ERROR(session.set_data(random_tokens(kDataTokens, session.vocab_size()), {}));
  MOEC_RETURN_IF_ERROR(timed_step(session).status());
  MOEC_ASSIGN_OR_RETURN(const double second_step, timed_step(session));
  MOEC_RETURN_IF_ERROR(timed_step(session).status());
  return Started{std::move(session), second_step};
}

Status run_row(benchmark::State& state, const Model& model, const Lane& lane) {
  lane.enter();
  MOEC_ASSIGN_OR_RETURN(Started started, start(model, lane));
  runtime::Session& session = started.session;
  const Work work = work_of_step(*model.plan);
  MOEC_ASSIGN_OR_RETURN(const Times times,
                        measure(
                            state, lane, work, [&] { return timed_step(session); }, 1, "%MFU"));
  const auto tokens = static_cast<double>(session.batch_size() * session.seq_len() * session.grad_accum());
  state.counters["tok/s"] = tokens / times.median;
  if (lane.captures()) state.counters["capture_ms"] = 1e3 * (started.second_step - times.median);
  return {};
}

}  // namespace

void add_step_row(Rows& rows, const Model& model, const Lane& lane) {
  rows.add(fmt::format("step/{}", model.name), benchmark::kMillisecond,
           [model, lane](benchmark::State& state) { return run_row(state, model, lane); });
}

}  // namespace moec::bench
