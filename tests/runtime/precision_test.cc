// Training in 16-bit types: it learns as f32 does, and a gradient that is not finite does no harm.
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>

#include "compiler/frontend.h"
#include "scratch_dir.h"
#include "tests/support/must.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

using fb::DType;
using runtime::Session;

struct Types {
  DType dtype = DType::F32, grad = DType::F32, moment = DType::F32;
};

fb::ModelT small_model(const Types& types) {
  fb::ModelT model = read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json");
  model.recipe->lr = 0.01;
  model.recipe->grad_accum = 2;
  model.recipe->dtype = types.dtype;
  model.recipe->grad_dtype = types.grad;
  model.recipe->moment_dtype = types.moment;
  return model;
}

Session small_session(const Types& types) {
  return must(training_session(small_model(types), runtime::make_cpu_device()));
}

/// Makes every gradient of the next step infinite, and of no other.
void train_on_infinite_gradients(Session& session) {
  const int state = session.plan().plan.io->train_state;
  const double infinite = std::numeric_limits<double>::infinity();
  const double before = must(session.read_train_state()).loss_scale;
  const auto write = [&](double scale) {
    must(
        session.device().write(state, offsetof(TrainState, loss_scale), std::as_bytes(std::span(&scale, 1))));
  };
  for (int64_t batch = 0; batch < session.grad_accum(); ++batch) {
    write(infinite);
    must(session.device().run(fb::ProgramKind::Accumulate));
  }
  write(before);
  must(session.device().run(fb::ProgramKind::Apply));
}

}  // namespace

TEST_CASE("16-bit types learn as f32 does") {
  const auto loss_of = [](const Types& types) {
    Session session = small_session(types);
    for (int step = 0; step < 300; ++step) must(session.train_step());
    return must(session.evaluate(0));
  };
  const double expected = loss_of({});
  CHECK(expected < 0.7 * std::log(61.0));
  for (const Types& types :
       {Types{DType::F32, DType::F32, DType::BF16}, Types{DType::BF16, DType::F32, DType::F32},
        Types{DType::BF16, DType::BF16, DType::BF16}, Types{DType::F16, DType::F32, DType::F32},
        Types{DType::F16, DType::F16, DType::BF16}}) {
    CAPTURE(fb::EnumNameDType(types.dtype));
    CAPTURE(fb::EnumNameDType(types.grad));
    CAPTURE(fb::EnumNameDType(types.moment));
    CHECK(loss_of(types) == doctest::Approx(expected).epsilon(0.01));
  }
}

TEST_CASE("an infinite gradient changes no weight, remainder, master or moment, and the run goes on") {
  for (const Types& types : {Types{}, Types{DType::BF16, DType::BF16, DType::BF16},
                             Types{DType::F16, DType::F16}, Types{DType::F16, DType::F32, DType::BF16}}) {
    CAPTURE(fb::EnumNameDType(types.dtype));
    Session session = small_session(types);
    for (int step = 0; step < 3; ++step) must(session.train_step());
    const uint64_t hash = must(session.state_hash());
    const TrainState before = must(session.read_train_state());
    train_on_infinite_gradients(session);
    const TrainState after = must(session.read_train_state());
    CHECK(must(session.state_hash()) == hash);
    CHECK(after.step == before.step + 1);
    CHECK(after.skipped_steps == before.skipped_steps + 1);
    CHECK(after.loss_scale == (types.dtype == DType::F16 ? before.loss_scale / 2 : 1));
    must(session.train_step());
    CHECK(must(session.state_hash()) != hash);
    CHECK(must(session.read_train_state()).skipped_steps == after.skipped_steps);
  }
}

TEST_CASE("f16 starts with the recipe's loss scale and doubles it after the recipe's interval") {
  fb::ModelT model = small_model({DType::F16});
  model.recipe->loss_scale = std::make_unique<fb::LossScaleT>();
  model.recipe->loss_scale->initial = 16;
  model.recipe->loss_scale->growth_interval = 2;
  Session session = must(training_session(model, runtime::make_cpu_device()));
  for (const double scale : {16, 16, 32, 32, 64}) {
    must(session.train_step());
    CHECK(must(session.read_metrics(session.step() - 1)).loss_scale == scale);
  }
  Session other = small_session({DType::BF16});
  must(other.train_step());
  CHECK(must(other.read_metrics(0)).loss_scale == 0);
}

}  // namespace moec::test
