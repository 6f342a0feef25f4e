#include <fmt/format.h>

#include "bench/measure.h"
#include "bench/rows.h"
#include "runtime/tuning/live_session.h"

namespace moec::bench {
namespace {

using tuning::seconds_per_step;
using tuning::Work;
using tuning::work_of_step;

Status run_row(benchmark::State& state, const Model& model, const Lane& lane) {
  lane.enter();
  MOEC_ASSIGN_OR_RETURN(runtime::Session session, new_session(model.plan, lane));
  MOEC_RETURN_IF_ERROR(seconds_per_step(session, 1).status());
  MOEC_ASSIGN_OR_RETURN(const double second_step, seconds_per_step(session, 1));  // captures
  MOEC_RETURN_IF_ERROR(seconds_per_step(session, 1).status());
  const Work work = work_of_step(*model.plan);
  MOEC_ASSIGN_OR_RETURN(const Times times,
                        measure(
                            state, lane, work, [&] { return seconds_per_step(session, 1); }, 1, "%MFU"));
  const auto tokens = static_cast<double>(session.batch_size() * session.seq_len() * session.grad_accum());
  state.counters["tok/s"] = tokens / times.median;
  if (lane.captures()) state.counters["capture_ms"] = 1e3 * (second_step - times.median);
  return {};
}

}  // namespace

void add_step_row(Rows& rows, const Model& model, const Lane& lane) {
  rows.add(fmt::format("step/{}", model.name), benchmark::kMillisecond,
           [model, lane](benchmark::State& state) { return run_row(state, model, lane); });
}

}  // namespace moec::bench
