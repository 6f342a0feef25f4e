// Sessions on a compiled mixture-of-experts model that is small enough to train within a test.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "runtime/dataset.h"
#include "runtime/session.h"
#include "tests/support/must.h"

namespace moec::test {

using runtime::Dataset;
using runtime::Session;

constexpr int64_t kVocabulary = 61;

struct Setup {
  fb::DType dtype = fb::DType::F32;
  fb::DType moment_dtype = fb::DType::F32;
  bool wide_gradients = true;  // f32, else as dtype
  uint32_t grad_accum = 1;
  int64_t window = 4096;
};

inline Session make_session(const Setup& setup = {}) {
  fb::ModelT model = read_model(MOEC_SOURCE_DIR "/tests/oracle/specs/mixtral-tiny.json");
  model.recipe->dtype = setup.dtype;
  model.recipe->moment_dtype = setup.moment_dtype;
  model.recipe->grad_dtype = setup.wide_gradients ? fb::DType::F32 : setup.dtype;
  if (setup.dtype == fb::DType::F16) {
    model.recipe->loss_scale = std::make_unique<fb::LossScaleT>();
    model.recipe->loss_scale->growth_interval = 3;
  }
  model.recipe->grad_accum = setup.grad_accum;
  model.recipe->sampling = fb::Sampling::Epoch;
  const std::vector<uint8_t> bytes = serialize_plan(compile(model, {.window_tokens = setup.window}));
  auto plan = must(runtime::parse_plan(std::string(bytes.begin(), bytes.end()), "tiny.plan"));
  return must(Session::create(plan, runtime::make_cpu_device(), {.poison_activations = true}));
}

/// A sequence that can be learnt: each token decides the next.
inline std::vector<int32_t> tokens(size_t count) {
  std::vector<int32_t> result(count);
  for (size_t i = 1; i < count; ++i) result[i] = (result[i - 1] * 7 + 3) % static_cast<int32_t>(kVocabulary);
  return result;
}

inline Dataset dataset(size_t train = 1500, size_t validation = 200) {
  return {.train = tokens(train),
          .validation = tokens(validation),
          .tokenizer = runtime::make_id_tokenizer(kVocabulary)};
}

inline Session started(const Setup& setup = {}) {
  Session session = make_session(setup);
  Dataset data = dataset();
  must(session.set_data(std::move(data.train), std::move(data.validation)));
  must(session.initialise(5, 0.01));
  return session;
}

}  // namespace moec::test
