// A compiled mixture-of-experts model: its steps, evaluation and samples.
#include "runtime/session.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>

#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "kernels/cpu/cpu_kernels.h"
#include "runtime/generate.h"
#include "scratch_dir.h"
#include "small_session.h"

namespace moec::runtime {
namespace {

using namespace test;

uint64_t hash_after(int steps, const Setup& setup) {
  Session session = started(setup);
  for (int i = 0; i < steps; ++i) must(session.train_step());
  return must(session.state_hash());
}

TEST_CASE("training lowers both losses, in every storage type") {
  for (const fb::DType dtype : {fb::DType::F32, fb::DType::F64, fb::DType::BF16, fb::DType::F16}) {
    CAPTURE(fb::EnumNameDType(dtype));
    Session session = started({.dtype = dtype, .grad_accum = 2});
    const double before = must(session.evaluate(0));
    CHECK(before == doctest::Approx(std::log(kVocabulary)).epsilon(0.05));
    for (int i = 0; i < 60; ++i) must(session.train_step());
    CHECK(must(session.read_metrics(59)).loss < 0.5 * must(session.read_metrics(0)).loss);
    CHECK(must(session.evaluate(0)) < 0.5 * before);
    CHECK(must(session.read_train_state()).step == 60);
    CHECK(must(session.read_train_state()).micro_batch == 120);
    CHECK_FALSE(session.read_metrics(60).ok());
    CHECK_FALSE(session.read_metrics(-1).ok());
  }
}

TEST_CASE("the number of threads changes no bit") {
  const Setup setup{.grad_accum = 2};
  const int before = cpu::threads();
  cpu::set_threads(1);
  const uint64_t one = hash_after(5, setup);
  cpu::set_threads(3);
  CHECK(hash_after(5, setup) == one);
  cpu::set_threads(before);
  CHECK(hash_after(4, setup) != one);
}

TEST_CASE("evaluation and prefill leave training as it was") {
  Session session = started();
  for (int i = 0; i < 6; ++i) {
    must(session.train_step());
    must(session.evaluate(i).status());
    must(session.prefill(tokens(7)).status());
    int batches = 0;
    CHECK_FALSE(must(session.evaluate(0, [&] { return ++batches == 2; })));
    CHECK(batches == 2);
  }
  CHECK(must(session.state_hash()) == hash_after(6, {}));
}

TEST_CASE("a tracer sees every instruction of a step and changes no bit") {
  Session session = started({.grad_accum = 2});
  size_t seen = 0;
  must(session.train_step([&](const TraceEvent&) -> Status {
    ++seen;
    return {};
  }));
  const LoadedPlan& plan = session.plan();
  CHECK(seen == 2 * plan.program(fb::ProgramKind::Accumulate)->instructions.size() +
                    plan.program(fb::ProgramKind::Apply)->instructions.size());
  CHECK(must(session.state_hash()) == hash_after(1, {.grad_accum = 2}));
}

TEST_CASE("a parameter that is written is read back, to the last bit of its master") {
  for (const fb::DType dtype : {fb::DType::F32, fb::DType::F64, fb::DType::BF16, fb::DType::F16}) {
    CAPTURE(fb::EnumNameDType(dtype));
    Session session = started({.dtype = dtype});
    must(session.train_step());
    HostTensor value = must(session.read_parameter(0));
    CHECK(value.info.dtype == (dtype == fb::DType::F64 ? fb::DType::F64 : fb::DType::F32));
    if (dtype == fb::DType::F64) {
      value.as<double>()[3] = 0.1;
    } else {
      value.as<float>()[3] = 0.1f;
    }
    must(session.write_parameter(value));
    CHECK(must(session.read_parameter(value.info.name)).data == value.data);
    value.info.shape.push_back(1);
    CHECK_FALSE(session.write_parameter(value).ok());
    CHECK(contains(session.read_parameter("nothing").error().message, "'nothing'"));
  }
}

TEST_CASE("bad tokens and prompts are errors") {
  Session session = make_session();
  CHECK(contains(session.train_step().error().message, "no training data"));
  CHECK(contains(session.set_data({1, 2, 61, 4}, {}).error().message, "token 61 at position 2"));
  CHECK(contains(session.set_data(tokens(12), {}).error().message, "need 13"));
  CHECK(contains(session.prefill({}).error().message, "0 tokens; the plan takes 1 to "));
  CHECK_FALSE(session.prefill(tokens(static_cast<size_t>(session.prefill_length()) + 1)).ok());
  CHECK(must(session.prefill(tokens(3))).size() == kVocabulary);
}

TEST_CASE("data longer than the window is all seen, and evaluated") {
  constexpr size_t kTokens = 4 * 96 + 1;  // four chunks of 8 sequences of 12 tokens
  Session session = make_session({.window = 97});
  must(session.set_data(tokens(kTokens), tokens(kTokens)));
  must(session.initialise(5, 0.01));
  std::vector<std::vector<std::byte>> contents;
  for (int i = 0; i < 20; ++i) {
    must(session.train_step());
    HostTensor now = must(session.read_tensor(session.plan().plan.io->window));
    if (contents.empty() || contents.back() != now.data) contents.push_back(std::move(now.data));
  }
  REQUIRE(contents.size() == 5);  // a chunk lasts 4 steps of 2 sequences
  CHECK(contents[4] == contents[0]);

  Session roomy = make_session();
  must(roomy.set_data(tokens(kTokens), tokens(kTokens)));
  must(roomy.initialise(5, 0.01));
  must(session.initialise(5, 0.01));
  CHECK(must(session.evaluate(0)) == doctest::Approx(must(roomy.evaluate(0))).epsilon(1e-12));
  CHECK(must(session.evaluate(5)) == doctest::Approx(must(roomy.evaluate(5))).epsilon(1e-12));
  CHECK(must(session.evaluate(session.validation_batches() + 7)) == must(session.evaluate(0)));
}

TEST_CASE("metrics that are read later are those of their steps") {
  Session session = started();
  CHECK_FALSE(session.read_metrics_later().ok());
  must(session.start_timer());
  std::vector<LateMetrics> late;
  for (int i = 0; i < 5; ++i) {
    must(session.train_step());
    late.push_back(must(session.read_metrics_later()));
  }
  for (int64_t step = 0; step < 5; ++step) {
    LateMetrics& metrics = late[static_cast<size_t>(step)];
    CHECK(metrics.first_step() == step);
    CHECK(must(metrics.ready()));
    CHECK(must(metrics.metrics()).loss == must(session.read_metrics(step)).loss);
    CHECK(must(metrics.seconds()) > 0);
  }
}

TEST_CASE("one read brings the metrics of several steps") {
  Session session = started();
  CHECK_FALSE(session.read_metrics_later(0).ok());
  for (int i = 0; i < 5; ++i) must(session.train_step());
  CHECK_FALSE(session.read_metrics_later(6).ok());
  LateMetrics late = must(session.read_metrics_later(3));
  CHECK(late.first_step() == 2);
  CHECK(late.steps() == 3);
  REQUIRE(must(late.ready()));
  for (int64_t i = 0; i < 3; ++i) {
    const StepMetrics metrics = must(late.metrics(i));
    CHECK(metrics.step == 2 + i);
    CHECK(metrics.loss == must(session.read_metrics(2 + i)).loss);
  }
  for (int i = 0; i < Session::kMostLateSteps; ++i) must(session.train_step());
  CHECK(session.read_metrics_later(Session::kMostLateSteps).ok());
  CHECK_FALSE(session.read_metrics_later(Session::kMostLateSteps + 1).ok());
}

TEST_CASE("no read of metrics spans the end of the ring") {
  Session session = started();
  TrainState state = must(session.read_train_state());
  state.step = kMetricsRows - 2;
  must(session.restore_train_state(state));
  for (int i = 0; i < 3; ++i) must(session.train_step());
  CHECK_FALSE(session.read_metrics_later(2).ok());
  CHECK(must(must(session.read_metrics_later(1)).metrics()).step == kMetricsRows);
}

TEST_CASE("a plan whose batches the host writes takes steps on them") {
  fb::ModelT model = read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json");
  const std::vector<uint8_t> bytes = serialize_plan(compile(model, {.host_batches = true}));
  const auto plan = must(parse_plan(std::string(bytes.begin(), bytes.end()), "tiny.plan"));
  Session session = must(Session::create(plan, make_cpu_device()));
  CHECK(plan->plan.io->window < 0);
  must(session.initialise(5, 0.01));
  const auto count = static_cast<size_t>(session.batch_size() * session.seq_len());
  must(session.write_batch(tokens(count), tokens(count)));
  for (int step = 0; step < 3; ++step) must(session.train_step());
  CHECK(must(session.read_metrics(2)).loss < must(session.read_metrics(0)).loss);
}

TEST_CASE("generation continues past the context, follows its seed, and stops when told") {
  Session session = started();
  const TokenizerPtr tokenizer = make_id_tokenizer(kVocabulary);
  const auto text_of = [&](const GenerateOptions& options, int64_t stop_after = 1000) {
    std::string text;
    must(generate(session, *tokenizer, "1 2 3", options, [&](int32_t, std::string_view piece) {
      text += piece;
      return --stop_after > 0;
    }));
    return text;
  };
  const std::string first = text_of({.max_tokens = 40, .sampler = {.seed = 3}});
  CHECK(must(tokenizer->encode(first)).size() == 40);
  CHECK(session.prefill_length() < 40);
  CHECK(text_of({.max_tokens = 40, .sampler = {.seed = 3}}) == first);
  CHECK(text_of({.max_tokens = 40, .sampler = {.seed = 4}}) != first);
  CHECK(must(tokenizer->encode(text_of({.max_tokens = 40}, 2))).size() == 2);
  const TokenizerPtr few = make_id_tokenizer(5);
  must(generate(session, *few, "1", {.max_tokens = 50}, [](int32_t token, std::string_view) {
    CHECK(token < 5);
    return true;
  }));
  CHECK(contains(generate(session, *tokenizer, "", {}, nullptr).error().message, "prompt is empty"));
}

}  // namespace
}  // namespace moec::runtime
