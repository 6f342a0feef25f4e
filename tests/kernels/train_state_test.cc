#include <memory>

#include "kernels/schedule.h"
#include "tests/kernels/train_state_tensor.h"

namespace moec::test {
namespace {

fb::ScheduleT make_schedule(fb::ScheduleKind kind, uint32_t warmup, uint32_t total, float min_ratio = 0,
                            uint32_t decay = 0) {
  fb::ScheduleT schedule;
  schedule.kind = kind;
  schedule.warmup_steps = warmup;
  schedule.total_steps = total;
  schedule.min_ratio = min_ratio;
  schedule.decay_steps = decay;
  return schedule;
}

TEST_CASE("learning rate schedules at their corners") {
  using Kind = fb::ScheduleKind;
  struct Case {
    fb::ScheduleT schedule;
    std::vector<std::pair<int64_t, double>> points;  // step, rate relative to the peak
  };
  const std::vector<Case> cases = {
      {make_schedule(Kind::Constant, 0, 0), {{0, 1}, {1000000, 1}}},
      {make_schedule(Kind::Constant, 10, 0), {{0, 0.1}, {8, 0.9}, {9, 1}, {10, 1}, {500, 1}}},
      {make_schedule(Kind::Linear, 0, 100), {{0, 1}, {25, 0.75}, {99, 0.01}, {100, 0}, {500, 0}}},
      {make_schedule(Kind::Linear, 20, 120, 0.5f), {{0, 0.05}, {20, 1}, {70, 0.75}, {120, 0.5}, {121, 0.5}}},
      {make_schedule(Kind::Cosine, 1000, 100000, 0.125f),
       {{0, 0.001}, {999, 1}, {1000, 1}, {50500, 0.5625}, {100000, 0.125}, {200000, 0.125}}},
      {make_schedule(Kind::Wsd, 10, 100, 0.25f, 40),
       {{4, 0.5}, {10, 1}, {60, 1}, {80, 0.625}, {100, 0.25}, {101, 0.25}}},
      {make_schedule(Kind::Wsd, 10, 100, 0, 500),
       {{10, 1}, {55, 0.5}, {100, 0}}},  // decay begins after warm-up
      {make_schedule(Kind::Cosine, 10, 10), {{9, 1}, {10, 0}}},
  };
  for (const Case& c : cases)
    for (auto [step, share] : c.points) {
      INFO("kind " << fb::EnumNameScheduleKind(c.schedule.kind) << ", step " << step);
      CHECK(learning_rate(0.3, c.schedule, step) == doctest::Approx(0.3 * share).epsilon(1e-12));
    }
}

TEST_CASE("lr_schedule sets the rate of the step under way") {
  TrainState start;
  start.base_lr = 0.4;
  start.step = 4;
  const Tensor state = state_tensor(start);
  fb::LrScheduleT attrs;
  run("lr_schedule", attrs, {state}, {state});
  CHECK(state_of(state).lr == 0.4);
  attrs.schedule = std::make_unique<fb::ScheduleT>(make_schedule(fb::ScheduleKind::Constant, 10, 0));
  run("lr_schedule", std::move(attrs), {state}, {state});
  CHECK(state_of(state).lr == doctest::Approx(0.2));
}

TEST_CASE("seed_gradient is the loss scale over the micro-batches") {
  TrainState start;
  start.loss_scale = 65536;
  fb::SeedGradientT attrs;
  attrs.grad_accum = 4;
  for (fb::DType dtype : {fb::DType::F32, fb::DType::F64}) {
    Tensor dloss(dtype, {});
    run("seed_gradient", attrs, {state_tensor(start)}, {dloss});
    CHECK(dloss.get(0) == 16384);
  }
}

fb::RecordLossT record_attrs(bool evaluate) {
  fb::RecordLossT attrs;
  attrs.losses = 1;
  attrs.grad_accum = 2;
  attrs.evaluate = evaluate;
  return attrs;
}

TEST_CASE("record_loss adds micro-batches up, and evaluation apart from them") {
  const Tensor state = state_tensor({});
  const Tensor ce(fb::DType::F32, {}, {3}), aux(fb::DType::F32, {}, {0.5}), z(fb::DType::F64, {}, {0.25});
  run("record_loss", record_attrs(false), {state, ce, aux, z}, {state});
  run("record_loss", record_attrs(false), {state, ce, aux, z}, {state});
  CHECK(state_of(state).loss == 3);
  CHECK(state_of(state).aux_loss == 0.75);
  CHECK(state_of(state).micro_batch == 2);
  run("record_loss", record_attrs(true), {state, ce, aux, z}, {state});
  const TrainState after = state_of(state);
  CHECK(after.eval_loss == 3);
  CHECK(after.eval_batch == 1);
  CHECK(after.loss == 3);
  CHECK(after.aux_loss == 0.75);
  CHECK(after.micro_batch == 2);
}

/// Ends the step and returns the state and the metrics. The loss scale is dynamic where it has an interval.
std::pair<TrainState, Tensor> end_step(const TrainState& start, uint32_t growth_interval = 0) {
  const Tensor state = state_tensor(start);
  Tensor metrics(fb::DType::F64, {kMetricsRows, kMetricsColumns});
  fb::EndStepT attrs;
  if (growth_interval > 0) {
    attrs.loss_scale = std::make_unique<fb::LossScaleT>();
    attrs.loss_scale->growth_interval = growth_interval;
  }
  run("end_step", std::move(attrs), {state, metrics}, {state, metrics});
  return {state_of(state), std::move(metrics)};
}

TEST_CASE("end_step writes one row of the ring and resets what belongs to the step") {
  for (const bool dynamic : {false, true}) {
    TrainState start;
    start.step = 3 * kMetricsRows + 5;
    start.loss = 2.5;
    start.aux_loss = 0.125;
    start.grad_norm = 7;
    start.lr = 0.01;
    start.loss_scale = 4;
    start.skipped_steps = 2;
    start.non_finite = 1;
    const auto [after, metrics] = end_step(start, dynamic ? 10 : 0);
    const std::vector<double> row = {
        static_cast<double>(start.step), 2.5, 0.125, 7, 0.01, 3, dynamic ? 4.0 : 0.0, 0};
    for (int64_t i = 0; i < metrics.elements(); ++i) {
      if (i / kMetricsColumns == 5)
        CHECK(metrics.get(i) == row[static_cast<size_t>(i % kMetricsColumns)]);
      else
        REQUIRE(std::isnan(metrics.get(i)));
    }
    CHECK(after.step == start.step + 1);
    CHECK(after.skipped_steps == 3);
    CHECK(after.loss == 0);
    CHECK(after.aux_loss == 0);
    CHECK(after.non_finite == 0);
    CHECK(after.loss_scale == (dynamic ? 2 : 4));
  }
}

TEST_CASE("the loss scale halves on overflow and doubles after an interval of clean steps") {
  TrainState state;
  state.loss_scale = 65536;
  for (int step = 0; step < 2; ++step) {
    state = end_step(state, 3).first;
    CHECK(state.loss_scale == 65536);
  }
  state = end_step(state, 3).first;
  CHECK(state.loss_scale == 131072);
  CHECK(state.clean_steps == 0);
  state = end_step(state, 3).first;
  CHECK(state.clean_steps == 1);
  state.non_finite = 1;
  state = end_step(state, 3).first;
  CHECK(state.loss_scale == 65536);
  CHECK(state.clean_steps == 0);
  state = end_step(state, 1).first;
  CHECK(state.loss_scale == 131072);
}

TEST_CASE("no number of overflows makes the loss scale zero, in f32 either") {
  TrainState state;
  for (int step = 0; step < 2000; ++step) {
    state.non_finite = 1;
    state = end_step(state, 2000).first;
  }
  CHECK(static_cast<float>(state.loss_scale) >= std::numeric_limits<float>::min());
  CHECK(state.loss_scale < 1e-37);
}

}  // namespace
}  // namespace moec::test
